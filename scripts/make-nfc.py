#!/usr/bin/env python3
"""Writes src/text/nfc_table.h from Python's unicodedata: canonical decompositions,
the pairs that compose, combining classes. Run from the top folder:

    python3 scripts/make-nfc.py"""
import unicodedata

def lines(items):
    line = "   "
    for item in items:
        if len(line) + 1 + len(item) > 100:
            yield line
            line = "   "
        line += " " + item
    yield line


def main():
    decompositions, classes = [], []
    for cp in range(0x110000):
        if 0xac00 <= cp < 0xd7a4:  # Hangul follows a formula
            continue
        d = unicodedata.decomposition(chr(cp))
        if d and not d.startswith("<"):
            parts = [int(p, 16) for p in d.split()]
            decompositions.append((cp, parts[0], parts[1] if len(parts) > 1 else 0))
        ccc = unicodedata.combining(chr(cp))
        if ccc:
            if classes and classes[-1][1] == cp - 1 and classes[-1][2] == ccc:
                classes[-1][1] = cp
            else:
                classes.append([cp, cp, ccc])
    # what composes: two parts, and NFC gives the character back
    pairs = [(a, b, i) for i, (cp, a, b) in enumerate(decompositions)
             if b and unicodedata.normalize("NFC", chr(cp)) == chr(cp)]
    pairs.sort()
    with open("src/text/nfc_table.h", "w", encoding="ascii") as f:
        f.write("/* Made by scripts/make-nfc.py from Unicode %s: do not edit.\n"
                " * Canonical decompositions by code point (second part 0: none), the rows that\n"
                " * compose in order of their parts, and ranges of combining classes. */\n"
                % unicodedata.unidata_version)
        f.write("#ifndef PL_TEXT_NFC_TABLE_H\n#define PL_TEXT_NFC_TABLE_H\n#include <stdint.h>\n\n")
        f.write("static const struct {\n  int32_t cp, first, second;\n} decompositions[] = {\n")
        items = ["{0x%x,0x%x,0x%x}," % d for d in decompositions]
        f.write("\n".join(lines(items)) + "\n};\n\n")
        f.write("static const uint16_t compositions[] = {\n")
        f.write("\n".join(lines(["%d," % i for _, _, i in pairs])) + "\n};\n\n")
        f.write("static const struct {\n  int32_t from, to;\n  uint8_t ccc;\n} classes[] = {\n")
        items = ["{0x%x,0x%x,%d}," % tuple(c) for c in classes]
        f.write("\n".join(lines(items)) + "\n};\n\n#endif\n")


if __name__ == "__main__":
    main()
