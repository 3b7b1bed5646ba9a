#!/usr/bin/env python3
"""GET /metrics of a real server: the format, the names that dashboards and gateways read, histograms that add up.

usage: metrics.py POLAR GOLDEN_MODEL_FOLDER
"""

import pathlib
import re
import sys
import tempfile

from expect import expect, finish
from server import Server, samples
from tiny_model import make_model

COUNTERS = """vllm:prompt_tokens_total vllm:generation_tokens_total vllm:prefix_cache_queries_total vllm:prefix_cache_hits_total
    vllm:num_preemptions_total vllm:request_success_total polar:kv_bytes_read_total polar:kv_bytes_skipped_total
    polar:router_seconds_total polar:engine_steps_total polar:requests_total polar:requests_finished_total polar:requests_cancelled_total
    polar:clients_gone_total polar:requests_refused_total polar:queue_full_total""".split()
GAUGES = """vllm:num_requests_running vllm:num_requests_waiting vllm:kv_cache_usage_perc vllm:cache_config_info polar:kv_density
    polar:head_density polar:neuron_density polar:pages_cached""".split()
HISTOGRAMS = """vllm:time_to_first_token_seconds vllm:inter_token_latency_seconds vllm:e2e_request_latency_seconds
    vllm:request_queue_time_seconds vllm:request_prefill_time_seconds vllm:request_decode_time_seconds
    polar:first_token_steps""".split()


def check_format(text):
    """The histograms by name: their buckets in order, sum and count."""
    found, types = samples(text)
    families = {}
    for name, labels, value in found:
        base = next((name[: -len(end)] for end in ("_bucket", "_sum", "_count")
                     if name.endswith(end) and types.get(name[: -len(end)]) == "histogram"), name)
        expect(base in types, f"{name} has no type")
        expect(labels.get("model_name") == 'a "name"'.replace('"', '\\"'), f"{name} names the model: {labels}")
        families.setdefault(base, []).append((name, labels, value))
    expect(set(families) == set(types), "every type has samples")
    histograms = {}
    for base, kind in types.items():
        keys = [(name, tuple(sorted(labels.items()))) for name, labels, _ in families.get(base, [])]
        expect(len(set(keys)) == len(keys), f"{base} has a sample twice")
        if kind == "counter":
            expect(base.endswith("_total") and all(v >= 0 for *_, v in families[base]), f"the counter {base}")
        if kind != "histogram":
            continue
        buckets = [(labels["le"], value) for name, labels, value in families[base] if name == base + "_bucket"]
        bounds = [float(le) for le, _ in buckets]
        counts = [value for _, value in buckets]
        (total,) = [value for name, _, value in families[base] if name == base + "_sum"]
        (count,) = [value for name, _, value in families[base] if name == base + "_count"]
        expect(bounds == sorted(set(bounds)) and buckets[-1][0] == "+Inf", f"the bounds of {base}")
        expect(counts == sorted(counts) and counts[-1] == count, f"the buckets of {base}")
        # Each value lies above the bound below it: so the sum has a floor, and where none is beyond the last, a ceiling.
        each = [b - a for a, b in zip([0] + counts, counts)]
        expect(total >= sum(n * low for n, low in zip(each, [0] + bounds)) * 0.999999, f"the sum of {base} is too small")
        if each[-1] == 0:
            expect(total <= sum(n * high for n, high in zip(each, bounds) if n) * 1.000001, f"the sum of {base} is too large")
        histograms[base] = (count, total)
    return types, histograms


with tempfile.TemporaryDirectory() as scratch:
    model = make_model(sys.argv[2], pathlib.Path(scratch) / "model")
    with Server(sys.argv[1], model, "--kv-memory", "1MiB", "--served-model-name", 'a "name"', "--threads", 1, "--device", "cpu") as server:
        types, histograms = check_format(server.request("GET", "/metrics")[1])
        for names, kind in ((COUNTERS, "counter"), (GAUGES, "gauge"), (HISTOGRAMS, "histogram")):
            for name in names:
                expect(types.get(name) == kind, f"{name} is a {types.get(name)}, wanted a {kind}")
        documented = (pathlib.Path(__file__).parents[2] / "docs" / "serving.md").read_text()
        documented = set(re.findall(r"`((?:vllm|polar):\w+)`", documented))
        expect(documented == set(types), f"docs/serving.md and the server differ in {sorted(documented ^ set(types))}")
        expect(all(count == 0 and total == 0 for count, total in histograms.values()), "nothing was measured yet")

        answers, tokens, scored = 12, 0, 3
        for i in range(answers):
            status, body = server.request("POST", "/v1/completions", {"prompt": [5 + i] * 20, "max_tokens": 1 + i, "ignore_eos": True})
            expect(status == 200, body)
            tokens += body["usage"]["completion_tokens"]
        for _ in range(scored):
            server.request("POST", "/v1/completions", {"prompt": [5] * 20, "max_tokens": 0, "echo": True, "logprobs": 0})
        text = server.request("GET", "/metrics")[1]
        _, histograms = check_format(text)
        values = {name: value for name, labels, value in samples(text)[0] if "le" not in labels}
        counts = {name: count for name, (count, _) in histograms.items()}
        expect(counts["vllm:time_to_first_token_seconds"] == answers, "a first token for each answer")
        expect(counts["vllm:inter_token_latency_seconds"] == tokens - answers, "a gap before each further token")
        for name in ("e2e_request_latency", "request_queue_time", "request_prefill_time", "request_decode_time"):
            expect(counts[f"vllm:{name}_seconds"] == answers + scored, f"{name}: {counts[f'vllm:{name}_seconds']}")
        parts = sum(histograms[f"vllm:request_{part}_time_seconds"][1] for part in ("queue", "prefill", "decode"))
        whole = histograms["vllm:e2e_request_latency_seconds"][1]
        expect(0 < parts <= whole, f"queue, prefill and decode take {parts} s of {whole} s")
        # Alone and within the token budget of one step, the first token comes with the first step.
        expect(histograms["polar:first_token_steps"] == (answers, answers), f"steps: {histograms['polar:first_token_steps']}")
        expect(values["vllm:generation_tokens_total"] == tokens, "tokens")
        expect(values["vllm:prompt_tokens_total"] == 20 * (answers + scored), "prompt tokens")
        expect(values["polar:head_density"] == values["polar:kv_density"] == 1, "dense steps read everything")
        expect(values["polar:neuron_density"] == 1, "every neuron is computed")
        expect(0 < values["polar:router_seconds_total"] < whole, f"time of plans: {values['polar:router_seconds_total']} s")
        expect(values["polar:kv_bytes_read_total"] > 0 == values["polar:kv_bytes_skipped_total"], "bytes")
        expect(server.terminate() == 0, "exit code")

finish()
