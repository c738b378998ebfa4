"""One workload in PyTorch; the last line of output is one JSON object.

    python torch_peer.py sft|dpo|gen|prefill SHAPE BATCH LENGTH f32|bf16 SECONDS [fused] [compile] [kept]

fused: AdamW in one kernel. compile: torch.compile (needs a C++ compiler). kept: dpo without the
reference's pass, its log-probabilities are at hand. Memory settings (huge pages, freed memory
kept) are environment variables, set by who calls."""
import copy
import json
import os
import resource
import sys
import time

import torch
import torch.nn.functional as F

from models import Model

PROMPT, NEW = 32, 128


def adamw(model, lr, fused):
    return torch.optim.AdamW(model.parameters(), lr=lr, fused=True) if fused else torch.optim.AdamW(model.parameters(), lr=lr)


def rounds(step, seconds, warm=2):
    for _ in range(warm):
        step()
    times, stop = [], time.perf_counter() + seconds
    while time.perf_counter() < stop or len(times) < 3:
        began = time.perf_counter()
        own = step()
        times.append(own or time.perf_counter() - began)  # gen gives its own time, without the prompts
    return sorted(times)


def sft(model, batch, length, cast, flags):
    opt, vocab = adamw(model, 1e-4, "fused" in flags), model.c["vocab"]
    run = torch.compile(model) if "compile" in flags else model
    x = torch.randint(0, vocab, (batch, length + 1))

    def step():
        with cast():
            logits = run(x[:, :-1])
            loss = F.cross_entropy(logits.view(-1, vocab), x[:, 1:].reshape(-1))
        loss.backward()
        del logits
        opt.step()
        opt.zero_grad(set_to_none=True)

    return step, batch * length, "tokens/s"


def dpo(model, batch, length, cast, flags):
    """Chosen and rejected side by side in one batch, as the usual trainers do."""
    opt, vocab = adamw(model, 1e-5, "fused" in flags), model.c["vocab"]
    reference = None if "kept" in flags else copy.deepcopy(model).eval()
    run = torch.compile(model) if "compile" in flags else model
    x = torch.randint(0, vocab, (2 * batch, length + 1))
    x[batch:, : length // 2 + 1] = x[:batch, : length // 2 + 1]
    counts = torch.zeros(2 * batch, length)
    counts[:, length // 2 :] = 1

    def sums(m):
        logits = m(x[:, :-1]).float()
        each = -F.cross_entropy(logits.view(-1, vocab), x[:, 1:].reshape(-1), reduction="none")
        return (each.view(2 * batch, length) * counts).sum(-1)

    with torch.no_grad(), cast():
        kept = sums(model)

    def step():
        base = kept
        if reference is not None:
            with torch.no_grad(), cast():
                base = sums(reference)
        with cast():
            gain = sums(run) - base
        loss = -F.logsigmoid(0.1 * (gain[:batch] - gain[batch:])).mean()
        loss.backward()
        opt.step()
        opt.zero_grad(set_to_none=True)

    return step, batch, "pairs/s"


def gen(model, batch, length, cast, flags):
    """Sampling at temperature 1 with the log-probability of each token; prompts are not timed."""
    run = torch.compile(model) if "compile" in flags else model

    def step():
        with torch.inference_mode():
            cache = model.cache(batch, PROMPT + NEW)
            logits = model(torch.randint(0, model.c["vocab"], (batch, PROMPT)), cache, 0, last=True)
            began = time.perf_counter()
            for i in range(NEW):
                logp = F.log_softmax(logits[:, -1].float(), -1)
                token = torch.multinomial(logp.exp(), 1)
                logp.gather(1, token)
                logits = run(token, cache, PROMPT + i, last=True)
            return time.perf_counter() - began

    return step, batch * NEW, "tokens/s"


def prefill(model, batch, length, cast, flags):
    x = torch.randint(0, model.c["vocab"], (batch, length))

    def step():
        with torch.inference_mode():
            model(x, model.cache(batch, length), 0, last=True)

    return step, batch * length, "tokens/s"


def main():
    mode, shape, batch, length, dtype, seconds = sys.argv[1:7]
    flags = sys.argv[7:]
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    torch.manual_seed(0)
    model = Model(shape)
    if mode in ("gen", "prefill") and dtype == "bf16":
        model = model.bfloat16()

    def cast():
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bf16")

    step, amount, unit = globals()[mode](model, int(batch), int(length), cast, flags)
    times = rounds(step, float(seconds))
    median = times[len(times) // 2]
    print(json.dumps(dict(
        peer="torch " + torch.__version__, rate=amount / median, best_rate=amount / times[0], unit=unit, ms=median * 1e3,
        best_ms=times[0] * 1e3, rounds=len(times), rss=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)))


main()
