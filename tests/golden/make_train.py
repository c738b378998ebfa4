"""Makes tests/golden/train/*.json: what PyTorch does in ten training steps.

Run by hand:  python3 tests/golden/make_train.py [PATH OF stories260K]
  optim.json    ten steps of torch.optim with every option on a small function
  losses.json   ten SFT and ten DPO steps of transformers' Llama on tests/golden/lm/tied: losses, gradient norms;
                for SFT also how far torch.autocast in bf16 is from f32, in DRAWS runs from weights 1e-4 apart:
                bf16_apart, of each step's loss the farthest, as a share of the f32 loss without a draw;
                bf16_gradient_apart, of the first gradient over all parameters the mean, as a share of its length
  stories.json  the same on stories260K, with the texts tokenised by the tokenizers library
The SFT loss is minus the mean log-probability of the answers' tokens over the batch. The DPO loss is
-log sigmoid(beta ((L_w - ref_w) - (L_l - ref_l))) on summed log-probabilities, as TRL and the paper's code have it.
Every step sees all rows, so the order of the data does not matter.
"""
import json
import os
import sys

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, "train")
STEPS = 10
DRAWS = 64


def dump(name, value):
    os.makedirs(OUT, exist_ok=True)
    with open(os.path.join(OUT, name), "w") as f:
        json.dump(value, f, indent=1)
        f.write("\n")


def optim_case(name, dtype, **options):
    w = torch.tensor([0.5, -1.25, 2.0, 0.0, -0.75, 3.0], dtype=dtype, requires_grad=True)
    c = torch.tensor([1.0, 0.5, 0.25, 2.0, 1.5, 0.1], dtype=dtype)
    opt = getattr(torch.optim, {"adamw": "AdamW", "rmsprop": "RMSprop", "sgd": "SGD"}[name])([w], **options)
    path = []
    for _ in range(STEPS):
        opt.zero_grad()
        ((c * w * w).sum() + 0.1 * (w * w * w).sum()).backward()
        opt.step()
        path.append(w.detach().tolist())
    return {"optimizer": name, "dtype": "f64" if dtype == torch.float64 else "f32", "options": options, "w": path}


def optimizers():
    cases = []
    for dtype in (torch.float64, torch.float32):
        for name, list_of_options in {
            "adamw": [{}, {"lr": 0.1, "betas": [0.8, 0.95], "eps": 1e-3, "weight_decay": 0.1}, {"weight_decay": 0.0}],
            "rmsprop": [{}, {"lr": 0.05, "alpha": 0.9, "eps": 1e-3, "weight_decay": 0.1},
                        {"lr": 0.02, "momentum": 0.9}, {"lr": 0.02, "centered": True, "momentum": 0.5}],
            "sgd": [{}, {"lr": 0.1, "momentum": 0.9}, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.05},
                    {"lr": 0.1, "momentum": 0.9, "nesterov": True}],
        }.items():
            cases += [optim_case(name, dtype, **o) for o in list_of_options]
    dump("optim.json", cases)


def answer_logps(model, rows):
    """Summed log-probability of each row's answer, and its number of tokens."""
    sums, counts = [], []
    for prompt, answer in rows:
        ids = torch.tensor([prompt + answer])
        lp = torch.log_softmax(model(ids).logits[0, :-1].float(), -1)
        at = torch.arange(len(prompt) - 1, ids.shape[1] - 1)
        sums.append(lp[at, ids[0, at + 1]].sum())
        counts.append(len(answer))
    return torch.stack(sums), torch.tensor(counts)


def optimizer(model, name, lr):
    make = {"adamw": lambda p: torch.optim.AdamW(p, lr=lr, weight_decay=0.0),
            "rmsprop": lambda p: torch.optim.RMSprop(p, lr=lr)}
    return make[name](model.parameters())


def load(path, draw=0):
    """draw > 0: with weights up to 1 in 10^4 apart, which f32 hardly feels and bf16 rounds elsewhere."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    if draw > 0:
        gen = torch.Generator().manual_seed(draw)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1 + 1e-4 * (2 * torch.rand(p.shape, generator=gen) - 1))
    return model


def backward(model, loss_of, state, bf16):
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        loss = loss_of(model, state)
    loss.backward()
    return loss


def train(path, loss_of, name, lr, clip, bf16=False, draw=0):
    model = load(path, draw)
    opt = optimizer(model, name, lr)
    losses, norms = [], []
    state = {}
    for _ in range(STEPS):
        loss = backward(model, loss_of, state, bf16)
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), clip).item())
        opt.step()
        losses.append(loss.item())
    return {"optimizer": name, "lr": lr, "max_grad_norm": clip, "loss": losses, "grad_norm": norms}


def bf16_apart(path, loss_of, case):
    worst = [0.0] * STEPS
    for draw in range(1, DRAWS + 1):
        curve = train(path, loss_of, case["optimizer"], case["lr"], case["max_grad_norm"], True, draw)["loss"]
        worst = [max(w, abs(c / f - 1)) for w, c, f in zip(worst, curve, case["loss"])]
    return worst


def bf16_gradient_apart(path, loss_of):
    total = 0
    for draw in range(1, DRAWS + 1):
        g = []
        for bf16 in (False, True):
            model = load(path, draw)
            backward(model, loss_of, {}, bf16)
            g.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        total += ((g[1] - g[0]).norm() / g[0].norm()).item()
    return total / DRAWS


def sft_loss(rows):
    def f(model, _):
        sums, counts = answer_logps(model, rows)
        return -sums.sum() / counts.sum()
    return f


def dpo_loss(pairs, beta):
    def f(model, state):
        w, _ = answer_logps(model, [(p, c) for p, c, _ in pairs])
        l, _ = answer_logps(model, [(p, r) for p, _, r in pairs])
        if not state:
            state["w"], state["l"] = w.detach(), l.detach()
        margin = (w - state["w"]) - (l - state["l"])
        return -F.logsigmoid(beta * margin).mean()
    return f


def runs(path, rows, pairs, lr):
    return {
        "sft": [train(path, sft_loss(rows), "adamw", lr["adamw"], 1.0),
                train(path, sft_loss(rows), "rmsprop", lr["rmsprop"], 10.0)],
        "dpo": [dict(train(path, dpo_loss(pairs, 0.1), "adamw", lr["adamw"], 1.0), beta=0.1),
                dict(train(path, dpo_loss(pairs, 0.05), "rmsprop", lr["rmsprop"], 10.0), beta=0.05)],
    }


def tiny():
    gen = torch.Generator().manual_seed(0)
    ids = lambda n: torch.randint(3, 61, (n,), generator=gen).tolist()
    rows = [(ids(p), ids(c) + [2]) for p, c in [(4, 3), (2, 9), (7, 1), (1, 5), (12, 2), (3, 20)]]
    pairs = [(ids(p), ids(a) + [2], ids(b) + [2]) for p, a, b in [(4, 3, 5), (2, 9, 2), (7, 1, 6), (5, 12, 12)]]
    path = os.path.join(HERE, "lm", "tied")
    out = runs(path, rows, pairs, {"adamw": 1e-2, "rmsprop": 1e-3})
    out["sft"].append(train(path, sft_loss(rows), "rmsprop", 5e-4, 10.0))
    for case in out["sft"]:
        case["bf16_apart"] = bf16_apart(path, sft_loss(rows), case)
    out["bf16_gradient_apart"] = bf16_gradient_apart(path, sft_loss(rows))
    out["rows"] = [{"prompt": p, "completion": c} for p, c in rows]
    out["pairs"] = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in pairs]
    dump("losses.json", out)


ROWS = [("Tim saw a cat.", " The cat was red and it could sing."), ("Lily had a ball.", " The ball was red."),
        ("One day, a bird", " found a big hat in the park and put it on."), ("The sun", " was hot.")]
PAIRS = [("Tim saw a cat.", " The cat was happy.", " The cat was sad."),
         ("Lily had a ball.", " She was happy.", " She was sad and went home to her mom."),
         ("The old man", " smiled at the little girl.", " was mean.")]


SENTENCES = ["The cat was happy.", "She was very happy."]


def by_hand(path, tok):
    """Ten AdamW steps on every token of two sentences: a training loop written by hand."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    opt = torch.optim.AdamW(model.parameters(), lr=5e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0)
    losses = []
    for _ in range(STEPS):
        total, count = 0, 0
        for sentence in SENTENCES:
            ids = torch.tensor([tok.encode(sentence)])
            logps = F.log_softmax(model(ids).logits[0, :-1], -1)
            total = total - logps.gather(1, ids[0, 1:, None]).sum()
            count += ids.shape[1] - 1
        loss = total / count
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    return {"sentences": SENTENCES, "losses": losses}


def stories(path):
    tok = PreTrainedTokenizerFast(tokenizer_file=os.path.join(path, "tokenizer.json"))

    def split(prompt, answer):
        head, whole = tok.encode(prompt), tok.encode(prompt + answer)
        assert whole[:len(head)] == head
        return head, whole[len(head):] + [2]

    rows = [split(p, c) for p, c in ROWS]
    pairs = []
    for p, c, r in PAIRS:
        head, chosen = split(p, c)
        pairs.append((head, chosen, split(p, r)[1]))
    out = runs(path, rows, pairs, {"adamw": 1e-3, "rmsprop": 1e-4})
    out["rows"] = [{"prompt": p, "completion": c} for p, c in ROWS]
    out["pairs"] = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in PAIRS]
    out["by_hand"] = by_hand(path, tok)
    dump("stories.json", out)


if __name__ == "__main__":
    torch.set_num_threads(1)
    optimizers()
    tiny()
    if len(sys.argv) > 1:
        stories(sys.argv[1])
