"""Random texts that tokenizers get wrong: shared by the scripts that freeze fixtures."""

import random
import unicodedata

ASCII = [chr(c) for c in range(0x20, 0x7F)]
WORDS = (
    "the of and to in a is that for it as was with be by on not he his but at are this have from or had an "
    "they which one you were her all their there would when what so if will no out up about into than them can "
    "only other time new some could these two may first then do any like my now over such our man me even most "
    "model token layer cache memory attention sparse dense batch decode prompt Paris France capital I'm you're "
    "he's we'll they've I'd don't CAN'T It'S we'Ll I'M").split()
CODE = [
    "def f(x):\n    return x + 1\n", "for (int i = 0; i < n; ++i) {\n\tsum += a[i];\n}\n",
    "#include <vector>\nint main() { return 0; }", "SELECT * FROM t WHERE id = 42;", "{\"a\": [1, 2.5e-3, null]}",
    "<div class=\"x\">&nbsp;</div>", "x = y if z else w  # comment", "a->b::c<d>(e);", "\\frac{1}{2}", "0xDEADBEEF",
    "\t\tif err != nil {\r\n\t\t\treturn err\r\n\t\t}\r\n", "foo_bar.BazQux(HTTPServer2)", "https://example.org/a?b=c&d=%20",
]
SPACES = [" ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2009", "\u200b", "\u202f", "\x0b", "\x0c",
          "\x85", "\u2028", "\u1680", "\u180e", "\ufeff", " \n ", "\t \n", "     "]
EMOJI = ["😀", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇫🇷🇩🇪", "👍🏽", "❤️", "🧑🏿‍🚀", "☕", "✨", "🤷‍♀️", "1️⃣", "©", "™"]
SCRIPTS = ["日本語のテキストです。", "中文分词测试，很难。", "한국어 텍스트", "Привет, мир!", "Γειά σου Κόσμε", "שלום עולם", "مرحبا بالعالم",
           "नमस्ते दुनिया", "ภาษาไทย", "Việt Nam", "Ünïcödé", "ﬁ ﬀ ﬃ", "Å Å Å", "é é", "한", "Ǆ ǅ ǆ",
           "İstanbul ıI", "straße ẞ", "½ ² ٣ ४ Ⅷ ①", "ſt'ſ 'ſ K", "ΌΣΟΣ", "Ａｂｃ１２３", "ｱｲｳ", "㍿ ㎏", "𝒳𝓎 𝟘𝟙",
           "a\u0301\u0323 a\u0323\u0301", "q\u0307\u0323", "\u0344", "\u1e9b\u0323", "\u0958", "नि", "ำ", "𐍈𐌰", "𠀀𠀁", "𝄞"]
CONTROLS = [chr(c) for c in range(0, 0x20)] + ["\x7f", "\u0080", "\u009f", "\u00ad", "\u200e", "\ufffd", "\ue000", "\U0010ffff", "\uffff"]
DIGITS = ["0", "7", "12", "123", "1234", "2024", "3.14159", "1,000,000", "99999999", "１２", "٣٤٥", "x2y3", "1a2b"]


def random_code_point(rng):
    """Any assigned character of Unicode 13, which every table in use knows."""
    while True:
        c = rng.randrange(0x20, 0x30000 if rng.random() < 0.5 else 0x3000)
        if not 0xD800 <= c <= 0xDFFF and unicodedata.category(chr(c)) != "Cn":
            return chr(c)


def piece(rng, specials):
    kind = rng.randrange(14)
    if kind < 3:
        return " ".join(rng.choices(WORDS, k=rng.randint(1, 6)))
    if kind == 3:
        return rng.choice(SPACES)
    if kind == 4:
        return rng.choice(EMOJI)
    if kind == 5:
        return rng.choice(SCRIPTS)
    if kind == 6:
        return rng.choice(CONTROLS)
    if kind == 7:
        return rng.choice(DIGITS)
    if kind == 8:
        return "".join(rng.choices(ASCII, k=rng.randint(1, 12)))
    if kind == 9:
        return "".join(random_code_point(rng) for _ in range(rng.randint(1, 5)))
    if kind == 10:
        return rng.choice(CODE)
    if kind == 11:
        return rng.choice(["a", "-", "=", " ", "\n", "é", "中", "ab", ".", "1", "#", "_"]) * rng.choice([2, 3, 4, 7, 15, 24, 25, 26, 40])
    if kind == 12 and specials:
        return rng.choice(specials)
    return rng.choice(["'s", "'LL", "…", "—", "“x”", "e.g.", "U.S.A.", "C++", "@user", "#tag", "$9.99", "100%", "▁", "▁▁a", "<0x41>", "Ġ"])


def texts(seed, count, specials=()):
    """`count` different texts, most of them short."""
    rng = random.Random(seed)
    out = {"": None, " ": None, "  ": None, "\n": None, "a": None, "Hello, world!": None, " hello": None}
    for special in specials:
        for form in ("{}", " {} ", "a{}b", "{}{}", "x {}\n", "{} y", "é{}é", "_{}_"):
            out[form.format(special, special)] = None
    while len(out) < count:
        out["".join(rng.choice(["", "", " "]) + piece(rng, list(specials)) for _ in range(rng.choice([1, 1, 1, 1, 2, 2, 3])))] = None
    return list(out)[:count]
