#!/usr/bin/env python3
"""Makes safetensors/*.safetensors with the reference library (safetensors 0.8)
and values.json, what is in them. Run from the top folder:

    python3 tests/golden/make_safetensors.py

own.safetensors holds only dtypes that perilune has: reading and writing it
again must give the same bytes. other.safetensors holds the rest."""
import json
import os

import torch
from safetensors.torch import save_file

DIR = os.path.join(os.path.dirname(os.path.abspath(__file__)), "safetensors")


def main():
    os.makedirs(DIR, exist_ok=True)
    g = torch.Generator().manual_seed(0)
    half = torch.tensor([0.0, -0.0, 1.0, -2.5, 65504.0, 6.103515625e-05, 5.960464477539063e-08, -3.0517578125e-05,
                         0.333251953125, float("inf"), float("-inf")], dtype=torch.float16)
    own = {
        "model.b": torch.randn(3, 2, generator=g), "model.a": torch.randn(4, generator=g),
        "scalar": torch.tensor(1.5), "empty": torch.zeros(0, 3), "double": torch.randn(2, 2, generator=g, dtype=torch.float64),
        "bf16": torch.randn(3, generator=g).to(torch.bfloat16), "i32": torch.tensor([1, -2, 2147483647], dtype=torch.int32),
        "i64": torch.tensor([[1, -9007199254740991]]), "flags": torch.tensor([True, False, True]),
        "odd name \"é\"\\": torch.tensor([7.0]),
    }
    other = {
        "half": half, "u8": torch.tensor([0, 255], dtype=torch.uint8), "i8": torch.tensor([-128, 127], dtype=torch.int8),
        "i16": torch.tensor([-32768, 32767], dtype=torch.int16), "u16": torch.tensor([65535], dtype=torch.uint16),
        "u32": torch.tensor([4294967295], dtype=torch.uint32), "u64": torch.tensor([1], dtype=torch.uint64),
        "f8": torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn), "complex": torch.tensor([1 + 2j]),
    }
    save_file(own, os.path.join(DIR, "own.safetensors"), metadata={"format": "pt"})
    save_file(other, os.path.join(DIR, "other.safetensors"))
    loadable = {**own, **{k: v for k, v in other.items() if k not in ("u64", "f8", "complex")}}
    values = {}
    for name, t in loadable.items():
        flat = t.flatten()
        if t.dtype in (torch.float16, torch.bfloat16):
            flat = flat.float()
        values[name] = {"shape": list(t.shape), "data": [str(v) if abs(v) == float("inf") else v for v in flat.tolist()]}
    with open(os.path.join(DIR, "values.json"), "w", encoding="utf-8") as f:
        json.dump(values, f, ensure_ascii=False, indent=1)
        f.write("\n")


if __name__ == "__main__":
    main()
