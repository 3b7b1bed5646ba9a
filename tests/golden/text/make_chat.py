#!/usr/bin/env python3
"""Freezes what transformers makes of chat templates, and what its jinja2 environment makes of small random templates.

Writes chat_contexts.json (by conversation), chat_cases.jsonl ([template, conversation, text or null when it fails]) and
expressions.jsonl ([template, text or null]); the expressions see EXPRESSION_CONTEXT below, also in expressions.context.json.
Made with transformers 5.23.0 and jinja2 3.1.6; the clock stands at 2024-07-29 00:00 UTC.
"""

import copy
import datetime
import json
import pathlib
import random

from jinja2 import nodes
import transformers.utils.chat_template_utils as utils

from conversations import CONVERSATIONS, context

HERE = pathlib.Path(__file__).parent


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.datetime(2024, 7, 29)


utils.datetime = Clock


def render(template, values):
    try:  # some filters add to a list in place: each rendering gets its own
        return utils._compile_jinja_template(template).render(**copy.deepcopy(values))
    except Exception:
        return None


def folds_a_bad_slice(template):
    """A slice of a constant that has none is undefined to jinja2's constant folding and a TypeError when it is computed:
    which of the two happens depends on where it stands, and says nothing."""
    environment = utils._compile_jinja_template("").environment
    try:
        items = environment.parse(template).find_all(nodes.Getitem)
    except Exception:
        return False
    for item in items:
        try:
            if isinstance(item.arg, nodes.Slice) and not isinstance(item.node.as_const(), (str, list, tuple)):
                return True
        except nodes.Impossible:
            pass
    return False


EXPRESSION_CONTEXT = {
    "a": 7, "b": -3, "f": 2.5, "z": 0, "s": "Hello, World", "e": "", "u": "Ünï 東京\t!", "t": True, "n": None,
    "l": [3, 1, 2], "m": ["b", "A", "c", "a"], "d": {"x": 1, "y": "two", "items": [1]}, "o": [{"k": 1, "v": "p"}, {"k": 2, "v": "q"}, {"v": "r"}]}
ATOMS = ["a", "b", "f", "z", "s", "e", "u", "t", "n", "l", "m", "d", "o", "nope", "1", "0", "-2", "3.5", "1e3", "'x'", "\"q'q\"", "'a b c'", "true", "none",
         "[]", "{}", "[1, 'a', none]", "{'k': 1, 2: [3]}", "(1, 2)", "'%s-%d'", "d.x", "d['y']", "o[0].k", "l[1]", "s[1:4]", "m[::-1]", "range(4)", "'l\\n\\'x\\''"]
BINARY = ["+", "-", "*", "/", "//", "%", "~", "==", "!=", "<", "<=", ">", ">=", "in", "not in", "and", "or"]
FILTERS = ["length", "upper", "lower", "trim", "first", "last", "list", "join", "join(', ')", "default('D')", "default('D', true)", "int", "float", "string",
           "tojson", "tojson(indent=2)", "sort", "reverse|list", "abs", "round", "round(1)", "unique|list", "map('upper')|list", "map(attribute='k')|list",
           "selectattr('k')|list", "selectattr('k', 'defined')|list", "rejectattr('k', 'equalto', 1)|list", "select('string')|list", "reject('none')|list",
           "replace('l', 'L')", "capitalize", "title", "sum", "min", "max", "items|list", "dictsort", "batch(2)|list", "slice(2)|list", "indent", "indent(2, true)",
           "truncate(8)", "center(20)", "wordcount", "count", "urlencode", "sort(reverse=true)", "sort(attribute='v')", "tojson(sort_keys=true)"]
TESTS = ["defined", "undefined", "none", "string", "number", "integer", "float", "boolean", "mapping", "sequence", "iterable", "odd", "even", "true", "false",
         "divisibleby(2)", "divisibleby 3", "eq 7", "in [1, 7]", "sameas none", "lower", "upper", "callable", "not none", "not defined", "gt 1"]
METHODS = [".upper()", ".lower()", ".strip()", ".split()", ".split(',')", ".split(' ', 1)", ".rsplit('o', 1)", ".startswith('H')", ".endswith(('d', 'x'))",
           ".replace('l', '')", ".title()", ".capitalize()", ".find('o')", ".count('l')", ".items()", ".keys()|list", ".values()|list", ".get('x')",
           ".get('q', 'none')", ".index(1)", ".lstrip('H')", ".rstrip('d!')", ".isdigit()", ".isalpha()", ".join(m)", ".zfill(15)", ".splitlines()",
           ".removeprefix('Hello')", ".format(1)", ".swapcase()", ".partition(',')", ".x", "['x']", "[0]", "[-1]", "[1:]", "[:-1]", "[::2]", ".append(1)", ".islower()"]


def expression(rng, depth):
    kind = rng.random()
    if depth == 0 or kind < 0.15:
        return rng.choice(ATOMS)
    inner = expression(rng, depth - 1)
    if kind < 0.35:
        return f"({inner} {rng.choice(BINARY)} {expression(rng, depth - 1)})"
    if kind < 0.45:
        return f"{inner} {rng.choice(BINARY)} {expression(rng, depth - 1)}"
    if kind < 0.65:
        return f"({inner})|{rng.choice(FILTERS)}"
    if kind < 0.75:
        return f"({inner}) is {rng.choice(TESTS)}"
    if kind < 0.90:
        return f"({inner}){rng.choice(METHODS)}"
    if kind < 0.94:
        return f"(not {inner})"
    if kind < 0.97:
        return f"({inner} if {expression(rng, depth - 1)} else {expression(rng, depth - 1)})"
    return f"[{inner}, {expression(rng, depth - 1)}]"


def template(rng):
    kind, body = rng.random(), expression(rng, rng.choice([1, 2, 2, 3]))
    minus = lambda: rng.choice(["", "", "-", "+"])
    dash = lambda: rng.choice(["", "", "-"])
    space = lambda: rng.choice(["", " ", "\n", "  \n  ", "\n\n", " x ", "\t"])
    other = expression(rng, 1)
    if kind < 0.55:
        return "{{ " + body + " }}"
    if kind < 0.65:
        return (f"A{space()}{{%{minus()} if {body} {dash()}%}}{space()}yes{space()}{{%{minus()} elif {other} %}}{space()}maybe{space()}"
                f"{{%{minus()} else {minus()}%}}{space()}no{space()}{{%{dash()} endif {minus()}%}}{space()}B")
    if kind < 0.80:
        flow = rng.choice(["", "{% if loop.index0 == 1 %}{% continue %}{% endif %}", "{% if loop.index > 2 %}{% break %}{% endif %}"])
        show = rng.choice(["{{ i }}", "{{ loop.index }}/{{ loop.length }}:{{ i }}", "{{ loop.first }}{{ loop.last }}{{ loop.revindex0 }}", "{{ loop.cycle('a','b') }}",
                           "{{ loop.previtem }}<{{ loop.nextitem }}", "{% set e = e ~ i %}{{ e }}"])
        return (f"{{%{minus()} for i in {body} {rng.choice(['', 'if i', 'if i is defined'])} {minus()}%}}{space()}{flow}{show}{space()}"
                f"{rng.choice(['', '{% else %}none'])}{{%{dash()} endfor %}}{space()}{{{{ e }}}}")
    if kind < 0.88:
        return (f"{{% set ns = namespace(v={other}) %}}{{% for i in [1, 2] %}}{{% set ns.v = {body} %}}{{% set w = i %}}{{% endfor %}}"
                f"{{{{ ns.v }}}}{{{{ w }}}}")
    if kind < 0.94:
        return (f"{{% macro m(p, q={other}) {dash()}%}}{space()}<{{{{ p }}}}|{{{{ q }}}}>{space()}{{%{dash()} endmacro %}}{{{{ m({body}) }}}}"
                f"{{{{ m(1, q={other}) }}}}")
    if kind < 0.97:
        return f"{{% set x %}}{space()}{{{{ {body} }}}}{space()}{{% endset %}}[{{{{ x }}}}]{{# {space()} #}}{space()}{{#- c -#}}{space()}{{% raw %}}{{{{ r }}}}{{% endraw %}}"
    return f"{{% filter upper %}}{space()}{{{{ {body} }}}}q{{% endfilter %}}{{% with k = {other} %}}{{{{ k }}}}{{% endwith %}}{{{{ k }}}}{{% generation %}}g{{% endgeneration %}}"


def expressions(seed, count):
    rng = random.Random(seed)
    return [template(rng) for _ in range(count)]


def stable(text):
    """Addresses and what is printed of Python's own objects differ from run to run."""
    return text is None or not any(w in text for w in (" object at 0x", "<built-in", "<bound method", "<function", "<Namespace", "generator object", "<method"))


def write(name, rows):
    (HERE / name).write_text("\n".join(json.dumps(r, ensure_ascii=False, separators=(",", ":")) for r in rows) + "\n")


def main():
    contexts = {name: context(c) for name, c in CONVERSATIONS.items()}
    (HERE / "chat_contexts.json").write_text(json.dumps(contexts, ensure_ascii=False, separators=(",", ":")) + "\n")
    rows = []
    for path in sorted((HERE / "templates").glob("*.jinja")):
        rows += [[path.stem, name, render(path.read_text(), values)] for name, values in contexts.items()]
    write("chat_cases.jsonl", rows)
    (HERE / "expressions.context.json").write_text(json.dumps(EXPRESSION_CONTEXT, ensure_ascii=False) + "\n")
    rows = [[t, render(t, EXPRESSION_CONTEXT)] for t in dict.fromkeys(expressions(7, 1200))]
    write("expressions.jsonl", [r for r in rows if stable(r[1]) and not folds_a_bad_slice(r[0])])


if __name__ == "__main__":
    main()
