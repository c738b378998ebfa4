#!/usr/bin/env python3
"""Makes tokenizer_own.json and tokenizer_shared.json: strings with the ids and
decoded texts of Hugging Face's tokenizers (0.23). Run from the top folder:

    python3 tests/golden/make_tokenizer.py

own: small tokenizers trained here from a seed, stored whole, one for each
component and option. shared: only strings and ids for the tokenizers in
../shared/data. Tests read these files and need no Python."""
import json
import os
import random
import unicodedata

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers as pre
from tokenizers import processors as post
from tokenizers import trainers

HERE = os.path.dirname(os.path.abspath(__file__))
SHARED = os.environ.get("PL_SHARED", os.path.join(HERE, "../../../shared"))
WORDS = ("the a of story little girl named Lily park play outside there was don't I'll we've it's 'S 2024 12345 7 "
         "once upon time hello world naïve café straße été ... !? _x_ x=1; foo(bar) 3.14").split()
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
          r"\s*[\r\n]+|\s+(?!\S)|\s+")
WORLD = r" ?[a-z]+| ?[A-Z][A-Za-z]*| ?[0-9]+|[.,:+?\n]"


def string(rng, added):
    """One random string; NUL is left out, for JSON files of ours cannot hold it."""
    kind, n = rng.randrange(8), rng.randrange(0, 40)
    if kind == 0:
        return "".join(chr(rng.randrange(32, 127)) for _ in range(n))
    if kind == 1:
        return "".join(rng.choice(["a", "b", " ", "  ", "\n", "\t", "\r\n", "The", " the", "  \n", " x"])
                       for _ in range(n))
    if kind == 2:
        return "".join(rng.choice("éèñüßøåç ÀÉaeiou\u0301\u00a0\u3000\u2028\u0085\u180e") for _ in range(n))
    if kind == 3:
        return "".join(rng.choice(["😀", "👩‍👩‍👧", "🇫🇷", "é", "中", "文", "▁", " ", "a", "1", "２", "Ⅷ", "½"])
                       for _ in range(n // 2))
    if kind == 4:
        chars = []
        while len(chars) < n // 2:
            c = rng.randrange(1, 0x110000)
            if unicodedata.category(chr(c)) not in ("Cn", "Cs"):
                chars.append(chr(c))
        return "".join(chars)
    if kind == 5:
        return "".join(rng.choice(added + [" ", "  ", "hello", "\n", "x", "▁", "<", ">", "é", "_"])
                       for _ in range(rng.randrange(1, 12)))
    if kind == 6:
        return " ".join(rng.choice(WORDS) for _ in range(n // 2))
    if n % 2:
        return "".join(rng.choice("aeouAc\u0301\u0302\u0323\u0327\u0344\u0958\u2126\ufb1d\u1100\u1161\u11a8가각힣Ǻế")
                       for _ in range(n))
    return "".join(rng.choice(["\x01", "\x1f", "\x7f", "a", " ", "\ufeff", "\ufffd", "\U0010ffff"])
                   for _ in range(n // 2))


def corpus(seed, n=400):
    rng = random.Random(seed)
    return [" ".join(rng.choice(WORDS) for _ in range(12)) for _ in range(n)]


def cases(tok, seed, n):
    rng = random.Random(seed)
    added = [t.content for t in tok.get_added_tokens_decoder().values()][:40] or ["<s>"]
    rows = []
    while len(rows) < n:
        text = string(rng, added)
        try:
            ids = tok.encode(text).ids
        except Exception:  # a word outside the vocabulary with no unknown token: ours refuses too
            rows.append({"text": text, "error": True})
            continue
        plain = tok.encode(text, add_special_tokens=False).ids
        row = {"text": text, "ids": ids, "decoded": tok.decode(ids, skip_special_tokens=True),
               "whole": tok.decode(ids, skip_special_tokens=False)}
        if plain != ids:
            row["plain"] = plain
        rows.append(row)
    random_ids = []
    for _ in range(n // 4):  # ids in no sensible order: half characters, bytes, specials
        ids = [rng.choice(sorted(tok.get_vocab().values())) for _ in range(rng.randrange(10))]
        row = {"ids": ids, "decoded": tok.decode(ids), "whole": tok.decode(ids, skip_special_tokens=False)}
        if "\0" not in row["whole"]:
            random_ids.append(row)
    return {"encode": rows, "decode": random_ids}


def byte_bpe(seed, **kw):
    tok = Tokenizer(models.BPE(**kw))
    tok.pre_tokenizer = pre.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(corpus(seed), trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=pre.ByteLevel.alphabet(), special_tokens=["<|endoftext|>"], show_progress=False))
    return tok


def char_bpe(seed, specials=("<unk>", "<s>", "</s>"), alphabet=60, fallback=False, space="▁", **kw):
    """Characters as symbols; with fallback the 256 byte tokens are part of the vocabulary."""
    tok = Tokenizer(models.BPE(unk_token="<unk>", **kw))
    tok.pre_tokenizer = pre.Metaspace(replacement=space, prepend_scheme="always")
    tok.train_from_iterator(corpus(seed), trainers.BpeTrainer(
        vocab_size=160, limit_alphabet=alphabet, special_tokens=list(specials), show_progress=False,
        **{k: kw[k] for k in ("end_of_word_suffix", "continuing_subword_prefix") if k in kw}))
    if fallback:
        j = json.loads(tok.to_str())
        vocab = j["model"]["vocab"]
        shift = {}
        for name, i in sorted(vocab.items(), key=lambda e: e[1]):
            shift[name] = i if i < 3 else i + 256
        for b in range(256):
            shift["<0x%02X>" % b] = 3 + b
        j["model"]["vocab"] = dict(sorted(shift.items(), key=lambda e: e[1]))
        j["model"]["byte_fallback"] = True
        tok = Tokenizer.from_str(json.dumps(j))
    return tok


def template(tok, front="<s>", back=None):
    ids = [(t, tok.token_to_id(t)) for t in (front, back) if t]
    tok.post_processor = post.TemplateProcessing(
        single=" ".join(t for t in (front, "$A", back) if t), special_tokens=ids)


def variants():
    gpt2 = byte_bpe(1)
    yield "gpt2", gpt2

    prefix = byte_bpe(1)
    prefix.pre_tokenizer = pre.ByteLevel(add_prefix_space=True)
    prefix.post_processor = post.RobertaProcessing(("<|endoftext|>", 0), ("<|endoftext|>", 0))
    yield "byte level, prefix space, roberta", prefix

    llama3 = byte_bpe(2, ignore_merges=True)
    llama3.pre_tokenizer = pre.Sequence([pre.Split(Regex(LLAMA3), "isolated"),
                                         pre.ByteLevel(add_prefix_space=False, use_regex=False)])
    llama3.add_special_tokens(["<|begin|>", "<|eot|>"])
    llama3.post_processor = post.Sequence([
        post.ByteLevel(trim_offsets=False),
        post.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", llama3.token_to_id("<|begin|>"))])])
    yield "llama3", llama3

    flags = byte_bpe(3)
    flags.add_tokens([AddedToken("<l>", lstrip=True), AddedToken("<r>", rstrip=True), AddedToken("<b>", lstrip=True, rstrip=True),
                      AddedToken("word", single_word=True), AddedToken("<lll>"), AddedToken("<l><l>"), AddedToken("  ")])
    yield "added token flags", flags

    llama2 = char_bpe(4, fallback=True, fuse_unk=True)
    llama2.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    llama2.pre_tokenizer = pre.Split("\x02", "removed")  # stands for none
    llama2.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                        decoders.Strip(" ", 1, 0)])
    template(llama2)
    yield "llama2", llama2

    normed = char_bpe(4, fallback=True)
    normed.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(Regex(r"\s"), "▁")])
    normed.add_tokens([AddedToken("a b", normalized=True), AddedToken("<raw>", normalized=False)])
    template(normed, "<s>", "</s>")
    yield "normalized added tokens, no decoder", normed

    for scheme in ("always", "first", "never"):
        for split in (True, False):
            meta = char_bpe(5, fallback=(scheme == "first"), fuse_unk=(scheme == "never"))
            meta.pre_tokenizer = pre.Metaspace(prepend_scheme=scheme, split=split)
            meta.decoder = decoders.Metaspace(prepend_scheme=scheme)
            meta.add_special_tokens(["[X]"])
            yield "metaspace %s split=%s" % (scheme, split), meta

    suffix = char_bpe(6, end_of_word_suffix="</w>")
    suffix.pre_tokenizer = pre.WhitespaceSplit()
    suffix.decoder = decoders.BPEDecoder()
    yield "end of word suffix", suffix

    sub = char_bpe(7, continuing_subword_prefix="##")
    sub.pre_tokenizer = pre.Sequence([pre.Whitespace(), pre.Digits(individual_digits=True)])
    sub.normalizer = normalizers.Strip()
    yield "continuing prefix, whitespace, digits", sub

    number = 0
    for behavior in ("isolated", "removed", "merged_with_previous", "merged_with_next", "contiguous"):
        for invert in (False, True):
            cut = char_bpe(8)
            number += 1
            cut.pre_tokenizer = pre.Split(Regex(r"[\s\d]") if number % 2 else " ", behavior, invert)
            yield "split %s invert=%s" % (behavior, invert), cut

    mixed = char_bpe(9)
    mixed.pre_tokenizer = pre.Sequence([pre.CharDelimiterSplit(" "), pre.Punctuation("merged_with_next"), pre.Digits()])
    mixed.decoder = decoders.Sequence([decoders.Strip("a", 2, 0), decoders.Replace(Regex("[e-h]"), "_")])
    yield "delimiter, punctuation, digits", mixed

    normal = byte_bpe(10)
    normal.normalizer = normalizers.ByteLevel()
    normal.pre_tokenizer = pre.Punctuation()
    yield "byte level normalizer", normal

    qwen = byte_bpe(11)
    qwen.normalizer = normalizers.NFC()
    yield "nfc", qwen
    marks = byte_bpe(11)
    marks.normalizer = normalizers.NFD()
    yield "nfd", marks

    words = ["Q", "A", ":", "\n", ".", ",", "+", "?", " the", " a", " story", "hello", " 7", " Lily", "x", " "]
    vocab = {w: i for i, w in enumerate(["</s>", "<unk>"] + words)}
    world = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    world.pre_tokenizer = pre.Split(Regex(WORLD), "isolated")
    world.decoder = decoders.Fuse()
    world.add_special_tokens(["</s>", "<unk>"])
    yield "word level", world


def own():
    return [dict(name=name, json=tok.to_str(), **cases(tok, i, 40)) for i, (name, tok) in enumerate(variants())]


def shared():
    found = []
    for i, where in enumerate(("models/stories260K", "tokenizers/gpt2", "tokenizers/mistral-v0.3")):
        tok = Tokenizer.from_file(os.path.join(SHARED, "data", where, "tokenizer.json"))
        found.append(dict(name=where, **cases(tok, 100 + i, 250)))
    return found


def write(name, value):
    path = os.path.join(HERE, name)
    with open(path, "w", encoding="utf-8") as f:
        f.write('{"made_by": "make_tokenizer.py, tokenizers %s",\n"tokenizers": [\n' % tokenizers.__version__)
        f.write(",\n".join(json.dumps(v, ensure_ascii=False, separators=(",", ":")) for v in value))
        f.write("\n]}\n")
    print(path, os.path.getsize(path))


if __name__ == "__main__":
    write("tokenizer_own.json", own())
    write("tokenizer_shared.json", shared())
