#!/usr/bin/env python3
"""Writes unicode_tables.inc: what the `tokenizers` package thinks of each character, asked of the package itself.

Two kinds of tables: whole sets of characters for Digits, Punctuation and StripAccents, and, for the properties that regular
expressions name, the characters that the package knows beyond Unicode 14 (PCRE2 10.42, the oldest that Polar builds with).
Made with tokenizers 0.23.3 (Unicode 16 in its regular expressions); needs a Python with Unicode 14 (3.11).
"""

import pathlib
import unicodedata

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
PROPERTIES = "L Lu Ll Lt Lm Lo M Mn Mc Me N Nd Nl No P Pc Pd Ps Pe Pi Pf Po S Sm Sc Sk So Z Zs".split()


def regex_set(pattern):
    splitter, found = pre_tokenizers.Split(Regex(pattern), "removed"), set()
    for at in range(0, len(CODE_POINTS), 4096):
        some = CODE_POINTS[at:at + 4096]
        kept = set()
        for _, (begin, end) in splitter.pre_tokenize_str("".join(map(chr, some))):
            kept.update(some[begin:end])
        found.update(set(some) - kept)
    return found


def split_set(splitter):
    found = set()
    for at in range(0, len(CODE_POINTS), 4096):
        some = CODE_POINTS[at:at + 4096]
        for _, (begin, end) in splitter.pre_tokenize_str("".join(f"a{chr(c)}a" for c in some)):
            if end - begin == 1 and begin % 3 == 1:
                found.add(some[begin // 3])
    return found


def word_set():
    """Characters next to which an added token with single_word is not found."""
    tok = Tokenizer(models.BPE(vocab={"?": 0}, merges=[], unk_token="?"))
    tok.add_tokens([AddedToken("#", single_word=True, normalized=False)])
    return {c for c in CODE_POINTS if 1 not in tok.encode(chr(c) + "#").ids}


def unknown_to_normal_forms():
    """Characters that the package's normal forms (older than its regular expressions) take for plain ones."""
    nfd, nfkd = normalizers.NFD(), normalizers.NFKD()
    found = regex_set(r"\P{Cn}") & {c for c in CODE_POINTS if unicodedata.category(chr(c)) == "Cn"}
    for c in CODE_POINTS:
        char = chr(c)
        plain = unicodedata.normalize("NFKD", char)
        if plain != char and nfkd.normalize_str(char) == char:
            found.add(c)
            if unicodedata.normalize("NFD", char) != char:  # nor may its parts be composed
                found.update(map(ord, plain))
        if unicodedata.combining(char):
            moved = [nfd.normalize_str(text) != text for text in (f"a\u0301{char}", f"a{char}\u0334")]
            if not any(moved):
                found.add(c)
    return found


def ranges(found):
    out = []
    for c in sorted(found):
        if out and out[-1][1] == c - 1:
            out[-1][1] = c
        else:
            out.append([c, c])
    return out


def table(name, found):
    cells = [f"{{0x{a:X}, 0x{b:X}}}" for a, b in ranges(found)]
    lines, line = [], "   "
    for cell in cells:
        if len(line) + len(cell) > 97:
            lines.append(line)
            line = "   "
        line += " " + cell + ","
    return f"constexpr Range {name}[] = {{\n" + "\n".join(lines + [line]) + "\n};\n"


def main():
    assert unicodedata.unidata_version == "14.0.0"
    accents = normalizers.StripAccents()
    out = ["// Written by make_unicode_tables.py: do not edit.\n"]
    out.append(table("kNumeric", split_set(pre_tokenizers.Digits(individual_digits=True))))
    out.append(table("kPunctuation", split_set(pre_tokenizers.Punctuation("isolated"))))
    out.append(table("kAccents", {c for c in CODE_POINTS if accents.normalize_str(chr(c)) == ""}))
    out.append(table("kUnknownToNormalForms", unknown_to_normal_forms()))
    word = regex_set(r"\w")
    out.append(table("kWord", word_set() - {ord("#")}))
    rows = []
    for name in PROPERTIES:
        extra = {c for c in regex_set(rf"\p{{{name}}}") if not unicodedata.category(chr(c)).startswith(name)}
        if extra:
            out.append(table(f"kNewer{name}", extra))
            rows.append(f'    {{"{name}", kNewer{name}}},\n')
    out.append(table("kNewerHan", regex_set(r"\p{Han}") & regex_set(r"\p{L}") & {c for c in CODE_POINTS if unicodedata.category(chr(c)) == "Cn"}))
    rows.append('    {"Han", kNewerHan},\n')
    known = {c for c in CODE_POINTS if unicodedata.category(chr(c))[0] in "LM" or unicodedata.category(chr(c)) in ("Nd", "Pc")}
    out.append(table("kWordBeyondCategories", word - known))
    out.append("constexpr Property kNewer[] = {\n" + "".join(rows) + "};\n")
    pathlib.Path(__file__).with_name("unicode_tables.inc").write_text("\n".join(out))
    print(len(known - word), "characters of L, M, Nd, Pc are no word characters")


if __name__ == "__main__":
    main()
