#!/usr/bin/env python3
"""Broken models and flags through the real program: exit code 2 and exactly one line on stderr that names what is wrong.

usage: bad_input.py POLAR GOLDEN_MODEL_FOLDER
"""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

from expect import expect, finish

polar, golden = sys.argv[1], pathlib.Path(sys.argv[2])


def refuse(arguments, *wanted):
    run = subprocess.run([polar, *map(str, arguments)], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    lines = run.stderr.splitlines()
    good = (run.returncode == 2 and len(lines) == 1 and lines[0].startswith("polar: error: ") and run.stdout == ""
            and all(word in lines[0] for word in wanted))
    expect(good, f"polar {arguments}: wanted {wanted}, got exit {run.returncode}: {run.stderr[:500]!r}")


def model(name):
    folder = pathlib.Path(tempfile.mkdtemp(dir=scratch)) / name
    shutil.copytree(golden, folder)
    return folder


def with_config(**changes):
    folder = model("m")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            config.pop(key, None)
        else:
            config[key] = value
    path.write_text(json.dumps(config))
    return folder


with tempfile.TemporaryDirectory() as scratch:
    refuse(["inspect", "/nowhere/model"], "/nowhere/model")
    refuse(["inspect", with_config(model_type="mamba")], "config.json", "model_type", "mamba")
    refuse(["inspect", with_config(num_hidden_layers=None)], "num_hidden_layers", "nothing")
    refuse(["inspect", with_config(num_hidden_layers=0)], "layers", "0")
    refuse(["inspect", with_config(num_hidden_layers=2000000000)], "layers")
    refuse(["inspect", with_config(num_hidden_layers=3)], "layers.2")
    refuse(["inspect", with_config(num_hidden_layers=1)], "layers.1")
    refuse(["inspect", with_config(hidden_size="wide")], "hidden_size", "wide")
    refuse(["inspect", with_config(hidden_size=-32)], "hidden", "-32")
    refuse(["inspect", with_config(num_attention_heads=0)], "heads")
    refuse(["inspect", with_config(num_key_value_heads=3)], "heads")
    refuse(["inspect", with_config(vocab_size=97)], "embed_tokens", "97")
    refuse(["inspect", with_config(hidden_act="tanh")], "hidden_act", "tanh")
    refuse(["inspect", with_config(quantization_config={"bits": 4})], "quantization_config")
    refuse(["inspect", with_config(rope_parameters={"rope_type": "longrope", "factor": 2.0})], "longrope")
    refuse(["inspect", with_config(eos_token_id="end")], "eos_token_id")
    folder = model("m")
    (folder / "config.json").write_text("{\"model_type\": ")
    refuse(["inspect", folder], "config.json")
    whole = (golden / "model.safetensors").read_bytes()
    for size in [0, 1, 7, 8, 9, 100, 1000, len(whole) // 2, len(whole) - 1]:
        folder = model("m")
        (folder / "model.safetensors").write_bytes(whole[:size])
        refuse(["inspect", folder], "model.safetensors")
        file = pathlib.Path(scratch) / "cut.gguf"
        file.write_bytes((b"GGUF\x03\0\0\0" + whole)[:size])
        refuse(["inspect", file], "cut.gguf")
    folder = model("m")
    (folder / "model.safetensors").unlink()
    refuse(["inspect", folder], "safetensors")
    refuse(["inspect", model("m")], "tokenizer.json")  # these models have none
    refuse(["eval", model("m"), "--text", "/nowhere.txt"], "/nowhere.txt")
    refuse(["bench"], "MODEL")
    refuse(["bench", "--dummy", "gpt-9"], "--dummy", "gpt-9")
    refuse(["bench", "--dummy", "dummy-1b", "--batch", "1,x"], "--batch", "1,x")
    refuse(["bench", "--dummy", "dummy-1b", "--density", "0"], "--density")
    refuse(["bench", "--dummy", "dummy-1b", "--density", "1.5"], "--density", "1.5")
    refuse(["bench", "--dummy", "dummy-1b", "--density", "nan"], "--density", "nan")
    refuse(["bench", "--no-such-flag"], "no-such-flag")
    refuse(["no-such-command"])

finish()
