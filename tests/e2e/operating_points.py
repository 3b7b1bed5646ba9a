#!/usr/bin/env python3
"""Operating points through the real server: one request is dense beside sparse ones, and --point auto chooses at admission.

usage: operating_points.py POLAR GOLDEN_MODEL_FOLDER
"""

import concurrent.futures
import json
import pathlib
import subprocess
import sys
import tempfile

from expect import expect, finish
from server import Server
from tiny_model import make_model


def make_profile(folder, config, fingerprint, density):
    layers, heads = config["num_hidden_layers"], config["num_key_value_heads"]
    quality = {"max_loss": 0.01, "perplexity_ratio": 1.005, "kl": 0, "agreement": 0, "effective_density": density, "text": "none"}
    folder.mkdir()
    (folder / "profile.json").write_text(json.dumps({
        "version": 1, "model": fingerprint, "layers": layers, "kv_heads": heads, "context_min": 40, "context_max": 100,
        "points": [{"name": "dense", "sink": 0, "recent": 0, "quality": {**quality, "perplexity_ratio": 1, "effective_density": 1},
                    "budget": [["full"] * heads] * layers},
                   {"name": "1%", "sink": 1, "recent": 1, "quality": quality, "budget": [["window"] * heads] * layers}]}))
    return folder


with tempfile.TemporaryDirectory() as scratch:
    scratch = pathlib.Path(scratch)
    model = make_model(sys.argv[2], scratch / "model")
    config = json.loads((model / "config.json").read_text())
    told = subprocess.run([sys.argv[1], "inspect", str(model)], capture_output=True, text=True, check=True).stdout
    fingerprint = json.loads(told)["fingerprint"]
    common = ["--kv-dtype", "f32", "--kv-memory", "1MiB", "--threads", 1]

    def ask(server, tokens, output, point=None):
        body = {"prompt": [5 + i % 60 for i in range(tokens)], "max_tokens": output, "ignore_eos": True, "temperature": 0}
        if point:
            body["polar"] = {"point": point}
        status, answer = server.request("POST", "/v1/completions", body)
        assert status == 200, answer
        told = answer["usage"]["polar"]
        assert told.pop("decode_seconds") >= 0
        return told, answer["choices"][0]["text"]

    with Server(sys.argv[1], model, *common, "--profile", make_profile(scratch / "p", config, fingerprint, 0.5),
                "--point", "auto") as server:
        for tokens, output, wanted in ((10, 10, "dense"), (30, 10, "1%"), (80, 10, "1%"), (80, 20, "1%"), (80, 21, "dense"),
                                       (110, 10, "dense")):
            used, _ = ask(server, tokens, output)
            expect(used["point"] == wanted, f"a prompt of {tokens} and {output} tokens runs at {used['point']}, wanted {wanted}")
        dense, sparse = ask(server, 90, 20, "dense"), ask(server, 90, 20, "1%")
        expect(dense[0]["kv_density"] == 1 and 0 < sparse[0]["kv_density"] < 0.7, f"densities: {dense[0]} {sparse[0]}")
        expect(dense[0]["kv_bytes_dense"] == sparse[0]["kv_bytes_dense"] > sparse[0]["kv_bytes_read"], "bytes")
        with concurrent.futures.ThreadPoolExecutor(8) as pool:  # together in one batch as alone
            mixed = list(pool.map(lambda i: ask(server, 90, 20, ("dense", "1%")[i % 2]), range(8)))
        expect(mixed == [dense, sparse] * 4, "dense and sparse requests in one batch differ from their lone runs")
        metrics = server.metrics()
        expect(0 < metrics["polar:head_density"] == metrics["polar:kv_density"] < 1, "densities of all steps")
        expect(metrics["polar:kv_bytes_skipped_total"] > 0, "bytes skipped")
        expect(server.terminate() == 0, "exit code")
    with Server(sys.argv[1], model, *common, "--profile", make_profile(scratch / "q", config, fingerprint, 0.97),
                "--point", "auto") as server:
        expect(ask(server, 80, 10)[0]["point"] == "dense", "a point that reads nearly everything does not pay")
        expect(ask(server, 80, 10, "1%")[0]["point"] == "1%", "unless it is asked for by name")

finish()
