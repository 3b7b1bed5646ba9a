#!/usr/bin/env python3
"""Log-likelihoods through /v1/completions (echo, logprobs, max_tokens 0) equal transformers' within 1e-3 per token.

usage: likelihoods.py POLAR MODEL_FOLDER ORACLE.json     (tests/golden/likelihoods/make.py writes oracles)

A folder may be given as shared:NAME, inside that which POLAR_SHARED names. A model without a tokenizer gets one of single
characters. Exits 77 (skipped) where the model is not there.
"""

import concurrent.futures
import json
import os
import pathlib
import sys
import tempfile

from server import Server
from tiny_model import make_model

polar, oracle = sys.argv[1], pathlib.Path(sys.argv[3])
model = pathlib.Path(sys.argv[2].replace("shared:", os.environ.get("POLAR_SHARED", "/nowhere") + "/"))
if not model.is_dir():
    print(f"{model} is not there (POLAR_SHARED names the folder of shared models): skipped")
    sys.exit(77)
passages = json.loads(oracle.read_text())["passages"]
with tempfile.TemporaryDirectory() as scratch:
    if not (model / "tokenizer.json").exists():
        model = make_model(model, pathlib.Path(scratch) / "model")
    with Server(polar, model, "--kv-dtype", "f32", "--kv-memory", "256MiB") as server:

        def score(passage):
            status, body = server.request("POST", "/v1/completions", {
                "prompt": passage["tokens"], "echo": True, "logprobs": 0, "max_tokens": 0})
            assert status == 200, body
            told = body["choices"][0]["logprobs"]["token_logprobs"]
            assert told[0] is None and len(told) == len(passage["tokens"]), (told, passage["tokens"])
            return max(abs(a - b) for a, b in zip(told[1:], passage["logprobs"]))

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            worst = max(pool.map(score, passages))
        code = server.terminate()
tokens = sum(len(passage["logprobs"]) for passage in passages)
print(f"{len(passages)} passages, {tokens} tokens: largest difference {worst:.2e}; exit code {code}")
sys.exit(not worst <= 1e-3 or code != 0)
