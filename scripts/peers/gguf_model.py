"""python gguf_model.py OUT f32|bf16|q8_0: the 15M Llama shape with random weights as a GGUF
file, without a vocabulary, for llama.cpp."""
import sys

import gguf
import numpy as np

from models import CONTEXT, SHAPES


def main():
    path, kind = sys.argv[1:3]
    c, random = SHAPES["15m"], np.random.default_rng(0)
    types = dict(f32=gguf.GGMLQuantizationType.F32, bf16=gguf.GGMLQuantizationType.BF16, q8_0=gguf.GGMLQuantizationType.Q8_0)
    d, size = c["d"], c["d"] // c["heads"]
    w = gguf.GGUFWriter(path, "llama")
    w.add_context_length(CONTEXT)
    w.add_embedding_length(d)
    w.add_block_count(c["layers"])
    w.add_feed_forward_length(c["ff"])
    w.add_head_count(c["heads"])
    w.add_head_count_kv(c["kv"])
    w.add_rope_dimension_count(size)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_vocab_size(c["vocab"])
    w.add_tokenizer_model("no_vocab")

    def matrix(name, rows, cols):
        values = random.normal(0, 0.02, (rows, cols)).astype(np.float32)
        w.add_tensor(name, gguf.quants.quantize(values, types[kind]), raw_dtype=types[kind])

    def norm(name):
        w.add_tensor(name, np.ones(d, np.float32))

    matrix("token_embd.weight", c["vocab"], d)  # the head too: no output.weight
    norm("output_norm.weight")
    for i in range(c["layers"]):
        norm(f"blk.{i}.attn_norm.weight")
        norm(f"blk.{i}.ffn_norm.weight")
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"blk.{i}.{part}.weight", d, d)
        matrix(f"blk.{i}.ffn_gate.weight", c["ff"], d)
        matrix(f"blk.{i}.ffn_up.weight", c["ff"], d)
        matrix(f"blk.{i}.ffn_down.weight", d, c["ff"])
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


main()
