#!/usr/bin/env python3
"""polar generate and polar run through the real program: order, batches, resumption, bad lines, scoring.

usage: generate.py POLAR GOLDEN_MODEL_FOLDER
"""

import json
import pathlib
import subprocess
import sys
import tempfile

from expect import expect, finish
from tiny_model import make_model

polar, golden = sys.argv[1], pathlib.Path(sys.argv[2])


def run(*arguments, text=None):
    return subprocess.run([polar, *map(str, arguments)], input=text, capture_output=True, text=True, timeout=300)


def generate(lines, *flags, out=None):
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n"
    prompts = scratch / "prompts.jsonl"
    prompts.write_text(text)
    out = out or scratch / "fresh.jsonl"
    done = run("generate", model, "--prompts", prompts, "--out", out, "--kv-dtype", "f32", "--kv-memory", "64MiB", *flags)
    return done, [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def fresh(lines, *flags):
    (scratch / "fresh.jsonl").unlink(missing_ok=True)
    return generate(lines, *flags)


with tempfile.TemporaryDirectory() as name:
    scratch = pathlib.Path(name)
    model = make_model(golden, scratch / "model")

    good = [{"prompt": "abc " * (i % 5 + 1) + str(i), "max_tokens": 3 + 5 * i % 11, "ignore_eos": True} for i in range(12)]
    good[3] = {"tokens": [5, 6, 7, 8], "max_tokens": 9, "id": "mine"}
    good[4]["temperature"], good[4]["seed"] = 1.5, 42
    good[5]["logprobs"] = 2
    done, answers = fresh(good)
    expect(done.returncode == 0 and done.stdout == "", f"exit 0: {done.returncode} {done.stderr!r}")
    expect([a["id"] for a in answers] == [str(i) if i != 3 else "mine" for i in range(12)], "answers stand in input order")
    expect(all(len(a["tokens"]) == g["max_tokens"] and a["finish_reason"] == "length"
               for a, g in zip(answers, good) if "ignore_eos" in g), "max_tokens is reached where ends are ignored")
    expect(all(a["usage"]["completion_tokens"] == len(a["tokens"]) for a in answers), "usage counts the tokens")
    expect("12 of 12 prompts" in done.stderr, "progress is on stderr")
    alone = [fresh([line], "--max-batch", 1)[1][0] for line in good]
    keys = ("text", "tokens", "finish_reason", "logprobs", "top_logprobs")
    expect([[a.get(k) for k in keys] for a in alone] == [[a.get(k) for k in keys] for a in answers],
           "each answer is the same alone as in the batch")
    top = answers[5]["top_logprobs"][0]
    expect(len(top) == 2 and max(top, key=top.get) == str(answers[5]["tokens"][0]), "the likeliest token heads its alternatives")

    # A run that was killed in the middle of its fifth line goes on to the very same file.
    whole = scratch / "whole.jsonl"
    generate(good, out=whole)
    expected = whole.read_bytes()
    lines = expected.splitlines(keepends=True)
    for kept in [b"".join(lines[:4]) + lines[4][:25], b"".join(lines[:4]), lines[0][:1], b"".join(lines), b""]:
        whole.write_bytes(kept)
        done, _ = generate(good, out=whole)
        expect(done.returncode == 0 and [json.loads(x)["tokens"] for x in whole.read_bytes().splitlines()]
               == [json.loads(x)["tokens"] for x in lines] and whole.read_bytes().startswith(kept[:kept.rfind(b"\n") + 1]),
               f"resumed after {len(kept)} bytes")
    done, _ = generate(good[1:], out=whole)
    expect(done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "whole.jsonl" in done.stderr,
           f"answers to other prompts are not gone on with: {done.stderr!r}")

    done, answers = fresh(["{broken", good[0], "", {"max_tokens": 3}, {"prompt": "a", "temperature": "hot", "id": "t"},
                           {"tokens": [10 ** 6]}, {"prompt": "x" * 100000}, {"prompt": "a", "point": "1%"}, good[1]])
    expect(done.returncode == 1, f"a bad line gives exit 1, not {done.returncode}")
    expect([a["id"] for a in answers] == ["0", "1", "3", "t", "5", "6", "7", "8"], f"ids of {[a['id'] for a in answers]}")
    wanted = {"0": "line 1: ", "3": "line 4: ", "t": "line 5: temperature", "5": "line 6: ", "6": "line 7: ", "7": "line 8: "}
    for answer in answers:
        start = wanted.get(answer["id"])
        expect(("error" in answer) == (start is not None) and answer.get("error", "").startswith(start or ""),
               f"error of {answer['id']}: {answer.get('error')}")

    # What generation says of its tokens, scoring says of the same text.
    _, (told,) = fresh([{"prompt": "hello there", "max_tokens": 12, "logprobs": 0, "prompt_logprobs": 0, "ignore_eos": True}])
    _, (scored,) = fresh([{"tokens": told["prompt_tokens"] + told["tokens"], "max_tokens": 0, "prompt_logprobs": 1}])
    both = told["prompt_logprobs"] + told["logprobs"]
    expect(scored["prompt_logprobs"][0] is None and len(scored["prompt_logprobs"]) == len(both), "one value for each token")
    expect(all(abs(a - b) < 1e-4 for a, b in zip(scored["prompt_logprobs"][1:], both[1:])), "scores agree")
    expect(scored["tokens"] == [] and scored["text"] == "" and scored["finish_reason"] == "length", "max_tokens 0 only scores")

    _, (free,) = fresh([{"prompt": "stop ", "max_tokens": 40, "ignore_eos": True}])
    stop = free["text"][7:9]
    _, (cut, by_id) = fresh([{"prompt": "stop ", "max_tokens": 40, "ignore_eos": True, "stop": stop},
                             {"prompt": "stop ", "max_tokens": 40, "ignore_eos": True, "stop_token_ids": [free["tokens"][6]]}])
    expect(cut["finish_reason"] == "stop" and cut["text"] == free["text"][: free["text"].find(stop)], "a stop string cuts the text")
    first = free["tokens"].index(free["tokens"][6])
    expect(by_id["finish_reason"] == "stop" and by_id["tokens"] == free["tokens"][: first + 1], "a stop id ends the tokens")

    sampled = {"prompt": "many", "max_tokens": 12, "temperature": 1.2, "seed": 5, "ignore_eos": True}
    _, (many, one, third) = fresh([{**sampled, "n": 3}, sampled, {**sampled, "seed": 7}])
    expect(len(many["choices"]) == 3 and many["choices"][0]["tokens"] == many["tokens"] == one["tokens"], "n answers, the first on top")
    expect(many["choices"][2]["tokens"] == third["tokens"] != one["tokens"], "answer i has seed + i")

    messages = [{"role": "user", "content": "hi"}]
    chat = scratch / "chat.json"
    chat.write_text(json.dumps(messages))
    _, (said,) = fresh([{"messages": messages, "max_tokens": 8, "prompt_logprobs": 0, "ignore_eos": True}])
    rendered = run("tokenize", model, "--chat", chat)
    text = "<s>[user] hi\n[assistant] "
    vocabulary = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    ids = [vocabulary["<s>"]] + [vocabulary[{" ": "Ġ", "\n": "Ċ"}.get(c, c)] for c in text[3:]]
    expect(rendered.stdout.rstrip("\n") == text.rstrip("\n"), f"the template renders: {rendered.stdout!r}")
    expect(said["prompt_tokens"] == ids, "messages go through the template, its special tokens become ids")

    _, (answer, text) = fresh([{"messages": messages, "max_tokens": 10}, {"prompt": "abc", "max_tokens": 10}])
    common = ["--temperature", 0, "--max-tokens", 10, "--kv-dtype", "f32", "--kv-memory", "64MiB"]
    spoken = run("run", model, "hi", *common)
    expect(spoken.returncode == 0 and spoken.stdout == answer["text"] + "\n", f"run answers as generate does: {spoken}")
    expect("tokens/s" in spoken.stderr, "run reports its speed on stderr")
    raw = run("run", model, "--raw", "--quiet", *common, text="abc")
    expect(raw.returncode == 0 and raw.stdout == text["text"] + "\n" and raw.stderr == "", f"run reads stdin: {raw}")
    long = run("run", model, "x" * 100000, *common)
    expect(long.returncode == 2 and len(long.stderr.splitlines()) == 1, f"a prompt that is too long: {long.stderr!r}")

finish()
