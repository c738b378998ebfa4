"""Makes tests/golden/lm: small seeded Llamas by transformers and the log-probabilities it gives them.

Run by hand:  python3 tests/golden/make_lm.py [PATH OF stories260K]
What is compared: perilune's log p(token | before) against torch's log_softmax of transformers' logits, f32.
"""
import json
import os
import shutil
import sys

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, "lm")

ROWS = [
    [1, 5, 9, 2, 33, 60, 11, 4, 7, 7, 7, 58, 30],
    [3, 3],
    [59, 0, 12, 45, 23, 8, 16],
    list(range(40)),
]


def logprobs(model, rows):
    out = []
    for ids in rows:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].double()
        lp = torch.log_softmax(logits[:-1], -1)
        out.append([lp[t, ids[t + 1]].item() for t in range(len(ids) - 1)])
    return out


def greedy(model, ids, n):
    with torch.no_grad():
        x = torch.tensor([ids])
        out = model.generate(x, attention_mask=torch.ones_like(x), max_new_tokens=n, do_sample=False, eos_token_id=None, pad_token_id=0)
    return out[0, len(ids):].tolist()


def make(name, dtype=torch.float32, shard=None, **kw):
    torch.manual_seed(len(name))
    config = LlamaConfig(
        vocab_size=61, hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2, **kw)
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # larger than the usual 0.02, so that mistakes show
        for p in model.parameters():
            p.copy_(1 + 0.3 * torch.randn_like(p) if p.ndim == 1 else 0.35 * torch.randn_like(p))
    model = model.to(dtype)
    path = os.path.join(OUT, name)
    shutil.rmtree(path, ignore_errors=True)
    model.save_pretrained(path, **({"max_shard_size": shard} if shard else {}))
    # read back, so that the rotary frequencies are f32 whatever the weights are
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return {"rows": ROWS, "logprobs": logprobs(model, ROWS), "prompt": ROWS[2], "greedy": greedy(model, ROWS[2], 24)}


def stories(path):
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    start = [1, 403, 407, 261, 378]  # Once upon a time
    rows = [start + greedy(model, start, 120), [1] + greedy(model, [1], 80), list(range(3, 500, 7))]
    return {"rows": rows, "logprobs": logprobs(model, rows)}


def main():
    os.makedirs(OUT, exist_ok=True)
    golden = {
        "tied": make("tied", tie_word_embeddings=True),
        "untied": make("untied", shard="6KB", tie_word_embeddings=False, rope_theta=500.0, head_dim=8),
        "half": make("half", dtype=torch.bfloat16, tie_word_embeddings=True),
        "stories260K": stories(sys.argv[1] if len(sys.argv) > 1 else os.path.join(HERE, "../../../shared/data/models/stories260K")),
    }
    with open(os.path.join(OUT, "logprobs.json"), "w") as f:
        json.dump(golden, f)


main()
