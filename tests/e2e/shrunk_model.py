#!/usr/bin/env python3
"""A model file that shrinks under a running server: one sentence that names the file and exit code 1, never a crash.

usage: shrunk_model.py POLAR GOLDEN_MODEL_FOLDER
"""

import os
import pathlib
import sys
import tempfile

from server import Server
from tiny_model import make_model

with tempfile.TemporaryDirectory() as scratch:
    model = make_model(sys.argv[2], pathlib.Path(scratch) / "model")
    ask = {"prompt": [5, 6, 7], "max_tokens": 5, "ignore_eos": True}
    with Server(sys.argv[1], model, "--kv-memory", "1MiB") as server:
        status, _ = server.request("POST", "/v1/completions", ask)
        assert status == 200
        before = server.stderr
        os.truncate(model / "model.safetensors", 0)
        try:
            status, body = server.request("POST", "/v1/completions", ask)
            sys.exit(f"FAILED: the weights are gone, but the answer is {status} {body}")
        except OSError:
            pass  # the process ended before it answered
        code = server.wait()
        said = server.stderr[len(before):].splitlines()
        good = code == 1 and len(said) == 1 and said[0].startswith("polar: error: ") and "model.safetensors" in said[0]
        print(f"exit code {code}: {said}")
        sys.exit(not good)
