#!/usr/bin/env python3
"""Neurons from calibration to serving, through the real program: calibrate, eval, generate, and a folder that was broken.

usage: neurons.py POLAR GOLDEN_OPT_FOLDER
"""

import json
import pathlib
import random
import subprocess
import sys
import tempfile

from expect import expect, finish
from tiny_model import make_model

polar = sys.argv[1]


def run(*arguments):
    return subprocess.run([polar, *map(str, arguments)], capture_output=True, text=True, timeout=300)


def refuse(arguments, *parts):
    done = run(*arguments)
    lines = done.stderr.splitlines()
    expect(done.returncode == 2 and len(lines) == 1 and all(part in lines[0] for part in parts),
           f"{arguments} is refused with {parts}: {done.returncode} {done.stderr}")


with tempfile.TemporaryDirectory() as scratch:
    scratch = pathlib.Path(scratch)
    model = make_model(sys.argv[2], scratch / "model")
    generator = random.Random(3)
    text = scratch / "text.txt"
    text.write_text("".join(generator.choice("abcdefghijklmnop ") for _ in range(2000)))
    folder = scratch / "profile"
    done = run("calibrate", model, "--text", text, "--context", 112, "--importance-windows", 1, "--held-out-windows", 3,
               "--needles", 0, "--max-loss", "40%", "--kv-dtype", "f32", "--format", "json", "--out", folder)
    expect(done.returncode == 0, f"calibrate exits 0: {done.stderr}")
    point = json.loads(done.stdout)[1]
    expect(point["point"] == "40%" and 0 < point["recall"] < 1 and point["neuron_share"] < 1, f"the point chooses neurons: {point}")

    evaluate = ["eval", model, "--text", text, "--context", 112, "--prompt", 28, "--windows", 4, "--kv-dtype", "f32",
                "--format", "json", "--profile", folder]

    def measure(*flags):
        done = run(*evaluate, *flags)
        expect(done.returncode == 0, f"eval {flags} exits 0: {done.stderr}")
        return json.loads(done.stdout)

    chosen = measure("--point", "40%")
    expect(abs(chosen["neuron_share"] - point["neuron_share"]) < 1e-6, "eval computes the neurons that calibrate did")
    whole = measure("--point", "40%", "--neurons", "off")
    expect(whole["neuron_share"] == 1 and whole["effective_density"] == chosen["effective_density"], "--neurons off computes all")
    few, many = (measure("--point", "dense", "--neurons", "routed", "--recall", recall) for recall in ("0.9", "0.97"))
    expect(few["neuron_share"] < many["neuron_share"] < 1 and few["kl"] > many["kl"], "a higher recall computes more and loses less")
    batched = measure("--point", "dense", "--neurons", "routed", "--recall", "0.9", "--batch", "4")
    expect(few["neuron_share"] < batched["neuron_share"], "a batch needs more neurons than a row")
    refuse([*evaluate, "--neurons", "routed", "--recall", "1.0"], "--recall", "at most 0.999")

    prompts = scratch / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": "abc" * (5 + i), "max_tokens": 40, "ignore_eos": True}) + "\n" for i in range(6)))
    generate = ["generate", model, "--prompts", prompts, "--out", scratch / "out.jsonl", "--kv-memory", "8MiB", "--profile"]
    done = run(*generate, folder)
    lines = (scratch / "out.jsonl").read_text().splitlines()
    expect(done.returncode == 0 and all(len(json.loads(line)["tokens"]) == 40 for line in lines), f"generate answers: {done.stderr}")

    (folder / "routers.safetensors").unlink()
    refuse([*generate, folder], "routers.safetensors")
finish(12)
