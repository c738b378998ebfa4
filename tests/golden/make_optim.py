"""Writes optim.json: what torch's optimizers do in 10 steps, in double.

Run from this folder: python3 make_optim.py   (torch 2.x)
Each case: name, options as torch calls them, the weights after every step.
Weights start at w0; the gradient of step t is g[t] whatever the weights are.
"""
import json

import torch

torch.set_default_dtype(torch.float64)
torch.manual_seed(3)
N, STEPS = 19, 10
w0 = torch.randn(N)
g = torch.randn(STEPS, N) * torch.logspace(-6, 1, N)  # tiny to large gradients

CASES = [
    ("adamw", torch.optim.AdamW, {}),
    ("adamw", torch.optim.AdamW, dict(lr=0.01, betas=(0.8, 0.95), eps=1e-4, weight_decay=0.0)),
    ("adamw", torch.optim.AdamW, dict(lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.3)),
    ("rmsprop", torch.optim.RMSprop, {}),
    ("rmsprop", torch.optim.RMSprop, dict(lr=1e-3, alpha=0.9, eps=1e-3, weight_decay=0.1)),
    ("rmsprop", torch.optim.RMSprop, dict(lr=1e-3, momentum=0.9)),
    ("rmsprop", torch.optim.RMSprop, dict(lr=1e-3, alpha=0.95, eps=1e-4, centered=True)),
    ("rmsprop", torch.optim.RMSprop,
     dict(lr=1e-2, alpha=0.9, eps=1e-2, centered=True, momentum=0.5, weight_decay=0.01)),
    ("sgd", torch.optim.SGD, dict(lr=0.1)),
    ("sgd", torch.optim.SGD, dict(lr=0.1, weight_decay=0.2)),
    ("sgd", torch.optim.SGD, dict(lr=0.1, momentum=0.9)),
    ("sgd", torch.optim.SGD, dict(lr=0.1, momentum=0.9, dampening=0.3, weight_decay=0.1)),
    ("sgd", torch.optim.SGD, dict(lr=0.1, momentum=0.8, nesterov=True, weight_decay=0.1)),
]

out = []
for name, make, options in CASES:
    w = torch.nn.Parameter(w0.clone())
    opt = make([w], **options)
    full = {k: v for k, v in opt.defaults.items()
            if k in ("lr", "betas", "eps", "weight_decay", "alpha", "momentum", "centered",
                     "dampening", "nesterov")}
    after = []
    for t in range(STEPS):
        w.grad = g[t].clone()
        opt.step()
        after.append(w.detach().tolist())
    out.append(dict(name=name, options=full, after=after))

with open("optim.json", "w") as f:
    json.dump(dict(torch=torch.__version__, w0=w0.tolist(), g=g.tolist(), cases=out), f)
    f.write("\n")
