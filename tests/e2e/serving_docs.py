#!/usr/bin/env python3
"""The flags in docs/serving.md are those that the program prints.

usage: serving_docs.py POLAR [--write]     (--write brings the page up to date)
"""

import pathlib
import subprocess
import sys

page = pathlib.Path(__file__).parents[2] / "docs" / "serving.md"
text = page.read_text()
begin = text.index("```\n", text.index("## Flags")) + 4
end = text.index("```", begin)
told = subprocess.run([sys.argv[1], "serve", "--help"], capture_output=True, text=True, check=True, timeout=60).stdout.strip() + "\n"
if text[begin:end] == told:
    sys.exit(0)
if "--write" in sys.argv:
    page.write_text(text[:begin] + told + text[end:])
    sys.exit(0)
print(f"{page}: the flags are not what `polar serve --help` prints; run: python3 tests/e2e/serving_docs.py build/polar --write")
sys.exit(1)
