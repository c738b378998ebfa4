"""GPT-2 and Llama shapes in plain PyTorch 2, as a careful user would write them for a CPU:
one product for q, k and v, the library's fused attention and norms, a cache for generation."""
import torch
import torch.nn as nn
import torch.nn.functional as F

SHAPES = {  # as scripts/bench/shapes.lua
    "15m": dict(kind="llama", d=288, layers=6, heads=6, kv=6, ff=768, vocab=32000, tied=True),
    "tiny": dict(kind="llama", d=128, layers=4, heads=4, kv=4, ff=352, vocab=512, tied=True),
    "1b": dict(kind="llama", d=2048, layers=22, heads=32, kv=4, ff=5632, vocab=32000, tied=False),
    "gpt2": dict(kind="gpt2", d=768, layers=12, heads=12, kv=12, ff=3072, vocab=50257, tied=True),
}
CONTEXT = 1024


def turned(x, cos, sin):
    """Rotary embedding, half-rotated form: x [B, heads, T, D], cos and sin [T, D/2]."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, gpt = c["d"], c["kind"] == "gpt2"
        self.heads, self.kv, self.size, self.gpt = c["heads"], c["kv"], d // c["heads"], gpt
        norm = nn.LayerNorm if gpt else nn.RMSNorm
        self.norm1, self.norm2 = norm(d, eps=1e-5), norm(d, eps=1e-5)
        self.qkv = nn.Linear(d, d + 2 * self.kv * self.size, bias=gpt)
        self.out = nn.Linear(d, d, bias=gpt)
        self.up = nn.Linear(d, c["ff"] * (1 if gpt else 2), bias=gpt)
        self.down = nn.Linear(c["ff"], d, bias=gpt)

    def attend(self, x, turn, cache, at):
        B, T, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).split((d, self.kv * self.size, self.kv * self.size), -1)
        q, k, v = (t.view(B, T, -1, self.size).transpose(1, 2) for t in (q, k, v))
        if turn is not None:
            q, k = turned(q, *turn).to(v.dtype), turned(k, *turn).to(v.dtype)
        if cache is not None:
            cache[0][:, :, at : at + T], cache[1][:, :, at : at + T] = k, v
            k, v = cache[0][:, :, : at + T], cache[1][:, :, : at + T]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=T > 1, enable_gqa=self.kv != self.heads)
        return self.out(y.transpose(1, 2).reshape(B, T, d))

    def forward(self, x, turn, cache=None, at=0):
        x = x + self.attend(x, turn, cache, at)
        h = self.up(self.norm2(x))
        if self.gpt:
            h = F.gelu(h, approximate="tanh")
        else:
            gate, up = h.chunk(2, -1)
            h = F.silu(gate) * up
        return x + self.down(h)


class Model(nn.Module):
    def __init__(self, shape):
        super().__init__()
        c = self.c = SHAPES[shape]
        d, gpt = c["d"], c["kind"] == "gpt2"
        self.embed = nn.Embedding(c["vocab"], d)
        self.place = nn.Embedding(CONTEXT, d) if gpt else None
        self.layers = nn.ModuleList(Layer(c) for _ in range(c["layers"]))
        self.norm = (nn.LayerNorm if gpt else nn.RMSNorm)(d, eps=1e-5)
        self.head = nn.Linear(d, c["vocab"], bias=False)
        if c["tied"]:
            self.head.weight = self.embed.weight
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)
        size = d // c["heads"]
        angle = torch.outer(torch.arange(CONTEXT).float(), 10000.0 ** (-torch.arange(0, size, 2) / size))
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, ids, cache=None, at=0, last=False):
        T = ids.shape[1]
        x = self.embed(ids)
        turn = None
        if self.place is not None:
            x = x + self.place.weight[at : at + T]
        else:
            turn = (self.cos[at : at + T], self.sin[at : at + T])
        for i, layer in enumerate(self.layers):
            x = layer(x, turn, cache[i] if cache is not None else None, at)
        return self.head(self.norm(x[:, -1:] if last else x))

    def cache(self, batch, length):
        c, dtype = self.c, self.head.weight.dtype
        shape = (batch, c["kv"], length, c["d"] // c["heads"])
        return [(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)) for _ in range(c["layers"])]
