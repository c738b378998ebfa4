"""Makes tests/golden/lm: small seeded Llamas and GPT-2s by transformers, the log-probabilities it gives them and the
gradients that torch gives their mean.

Run by hand:  python3 tests/golden/make_lm.py [PATH OF stories260K]
What is compared: perilune's log p(token | before) against torch's log_softmax of transformers' logits, f32; the gradient of
its mean over all tokens of all rows, as the file lays the weights out.
"""
import json
import os
import shutil
import sys

import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

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


def gradients(model, rows):
    """Of the mean log-probability, by name: as many numbers as fit a small file, each the dot product with a fixed pattern."""
    model.zero_grad()
    total = sum(torch.log_softmax(model(torch.tensor([ids])).logits[0, :-1].double(), -1)
                .gather(1, torch.tensor(ids[1:])[:, None]).sum() for ids in rows)
    (total / sum(len(ids) - 1 for ids in rows)).backward()
    out = {}
    for name, p in model.named_parameters():
        g = p.grad.double().flatten()
        i = torch.arange(g.numel(), dtype=torch.float64)
        out[name] = [g.abs().sum().item(), (g * torch.sin(i + 1)).sum().item(), (g * torch.cos(0.7 * i)).sum().item()]
    return out


def scatter(model):
    with torch.no_grad():  # larger than the usual 0.02, so that mistakes show
        for n, p in model.named_parameters():
            weight = p.ndim == 1 and not n.endswith("bias")
            p.copy_(1 + 0.3 * torch.randn_like(p) if weight else 0.35 * torch.randn_like(p))


def write(name, model, dtype, shard):
    model = model.to(dtype)
    path = os.path.join(OUT, name)
    shutil.rmtree(path, ignore_errors=True)
    model.save_pretrained(path, **({"max_shard_size": shard} if shard else {}))
    # read back, so that the rotary frequencies are f32 whatever the weights are
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return {"rows": ROWS, "logprobs": logprobs(model, ROWS), "prompt": ROWS[2], "greedy": greedy(model, ROWS[2], 24),
            "gradients": gradients(model, ROWS)}


def make(name, dtype=torch.float32, shard=None, **kw):
    torch.manual_seed(len(name))
    config = LlamaConfig(
        vocab_size=61, hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2, **kw)
    model = LlamaForCausalLM(config)
    scatter(model)
    return write(name, model, dtype, shard)


def make_gpt2(name, dtype=torch.float32, shard=None, **kw):
    torch.manual_seed(len(name))
    config = GPT2Config(vocab_size=61, n_embd=15, n_layer=2, n_head=3, n_positions=64, bos_token_id=1, eos_token_id=2, **kw)
    model = GPT2LMHeadModel(config)
    scatter(model)
    return write(name, model, dtype, shard)


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
        "bias": make("bias", tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
        "gpt2": make_gpt2("gpt2"),
        "gpt2-untied": make_gpt2("gpt2-untied", dtype=torch.bfloat16, shard="7KB", n_inner=22, tie_word_embeddings=False,
                                 layer_norm_epsilon=1e-3),
        "stories260K": stories(sys.argv[1] if len(sys.argv) > 1 else os.path.join(HERE, "../../../shared/data/models/stories260K")),
    }
    with open(os.path.join(OUT, "logprobs.json"), "w") as f:
        json.dump(golden, f)


main()
