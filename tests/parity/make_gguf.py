"""make_gguf.py OUT.gguf: a small Llama with random weights (seeded) and one token a character,
whose output layer makes "m" and "M" the likeliest tokens: a judge that log-probabilities can be
read from. How it leans depends on the text through attention alone."""
import sys

import gguf
import numpy as np

WIDTH, LAYERS, HEADS, INNER, CONTEXT, SEED = 64, 2, 4, 128, 4096, 9
TEMPLATE = ("{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
            "{% if add_generation_prompt %}assistant:{% endif %}")


def vocabulary():
    """(text, score, type) of every token: specials, all bytes, then the characters of ASCII."""
    kind = gguf.TokenType
    rows = [("<unk>", 0.0, kind.UNKNOWN), ("<s>", 0.0, kind.CONTROL), ("</s>", 0.0, kind.CONTROL)]
    rows += [(f"<0x{i:02X}>", 0.0, kind.BYTE) for i in range(256)]
    characters = ["\u2581"] + [chr(c) for c in range(0x21, 0x7F)]      # U+2581 stands for the space
    return rows + [(c, -float(i + 1), kind.NORMAL) for i, c in enumerate(characters)]


def weights(tokens):
    """All tensors. Dimension 0 of the residual stream is a constant: nothing is added to it."""
    draw = np.random.default_rng(SEED)

    def normal(rows, columns, scale):
        return (draw.standard_normal((rows, columns)) * scale).astype(np.float32)

    def closed(matrix):
        matrix[0] = 0
        return matrix

    ones = np.ones(WIDTH, dtype=np.float32)
    embedding = normal(len(tokens), WIDTH, 1)
    embedding[:, 0] = 4
    yield "token_embd.weight", embedding
    for i in range(LAYERS):
        yield f"blk.{i}.attn_norm.weight", ones
        yield f"blk.{i}.attn_q.weight", normal(WIDTH, WIDTH, 0.2)
        yield f"blk.{i}.attn_k.weight", normal(WIDTH, WIDTH, 0.2)
        yield f"blk.{i}.attn_v.weight", normal(WIDTH, WIDTH, 0.25)
        yield f"blk.{i}.attn_output.weight", closed(normal(WIDTH, WIDTH, 0.25))
        yield f"blk.{i}.ffn_norm.weight", ones
        yield f"blk.{i}.ffn_gate.weight", normal(INNER, WIDTH, 0.125)
        yield f"blk.{i}.ffn_up.weight", normal(INNER, WIDTH, 0.125)
        yield f"blk.{i}.ffn_down.weight", closed(normal(WIDTH, INNER, 0.125))
    yield "output_norm.weight", ones
    output = normal(len(tokens), WIDTH, 0.05)
    texts = [t[0] for t in tokens]
    lean = normal(1, WIDTH, 0.3)[0]
    for letter, side in (("m", 1), ("M", -1)):
        output[texts.index(letter)] = side * lean
        output[texts.index(letter), 0] = 7
    output[texts.index("</s>"), 0] = -7
    yield "output.weight", output


def write(path):
    tokens = vocabulary()
    w = gguf.GGUFWriter(path, "llama")
    w.add_name("parity judge")
    w.add_context_length(CONTEXT)
    w.add_embedding_length(WIDTH)
    w.add_block_count(LAYERS)
    w.add_feed_forward_length(INNER)
    w.add_head_count(HEADS)
    w.add_head_count_kv(HEADS)
    w.add_rope_dimension_count(WIDTH // HEADS)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_vocab_size(len(tokens))
    w.add_tokenizer_model("llama")
    w.add_token_list([t[0] for t in tokens])
    w.add_token_scores([t[1] for t in tokens])
    w.add_token_types([t[2] for t in tokens])
    w.add_unk_token_id(0)
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_add_bos_token(True)
    w.add_add_space_prefix(False)
    w.add_chat_template(TEMPLATE)
    for name, tensor in weights(tokens):
        w.add_tensor(name, tensor)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


if __name__ == "__main__":
    write(sys.argv[1])
