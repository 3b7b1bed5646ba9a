#!/usr/bin/env python3
"""Many streams at once: do all get on, what do the server's text threads cost, how soon is a newcomer served. Not in CTest: it measures.

usage: many_streams.py POLAR MODEL [--streams 256] [--tokens 24] [--threads N]
"""

import argparse
import asyncio
import json
import os
import pathlib
import statistics
import sys
import time

from server import Client, Server


def cpu_seconds(process):
    """CPU seconds by thread name."""
    out = {}
    tick = os.sysconf("SC_CLK_TCK")
    for task in pathlib.Path(f"/proc/{process.pid}/task").iterdir():
        fields = (task / "stat").read_text()
        name = fields[fields.index("(") + 1: fields.rindex(")")]
        user, system = fields[fields.rindex(")") + 2:].split()[11:13]
        out[name] = out.get(name, 0) + (int(user) + int(system)) / tick
    return out


async def stream(port, i, tokens, gaps):
    client = Client(port)
    await client.send("POST", "/v1/completions", {"prompt": f"Tell me fact number {i} about the sea:", "max_tokens": tokens,
                                                  "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}})
    status, _ = await client.head()
    assert status == 200, status
    last, data = None, b""
    while piece := await client.chunk():
        now = time.monotonic()
        if last is not None:
            gaps.append(now - last)
        last, data = now, data + piece
    assert data.endswith(b"data: [DONE]\n\n") and b'"error"' not in data, data[-300:]
    assert json.loads(data.decode().split("\n\n")[-3][6:])["usage"]["completion_tokens"] == tokens
    client.close()


async def newcomer(server, decoding, prompt, name):
    """Engine steps to the first token of a prompt of so many tokens, while others decode."""
    gaps = []
    others = [asyncio.create_task(stream(server.port, i, 60, gaps)) for i in range(decoding)]
    while (await asyncio.to_thread(server.metrics))["vllm:num_requests_running"] < decoding:
        await asyncio.sleep(0.1)
    while (await asyncio.to_thread(server.metrics))["vllm:time_to_first_token_seconds_count"] < name + decoding:
        await asyncio.sleep(0.1)
    before = await asyncio.to_thread(server.metrics)
    status, body = await asyncio.to_thread(server.request, "POST", "/v1/completions",
                                           {"prompt": [40 + (i + 7 * prompt) % 1000 for i in range(prompt)], "max_tokens": 1})
    assert status != 200 or body["usage"]["prompt_tokens_details"]["cached_tokens"] == 0, "nothing of the newcomer may be cached"
    after = await asyncio.to_thread(server.metrics)
    assert status == 200 and after["polar:first_token_steps_count"] >= before["polar:first_token_steps_count"] + 1, body
    still = after["vllm:num_requests_running"]
    steps = after["polar:first_token_steps_sum"] - before["polar:first_token_steps_sum"]
    await asyncio.gather(*others)
    return steps, still


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("polar")
    parser.add_argument("model")
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    with Server(arguments.polar, arguments.model, "--kv-memory", "1GiB", "--max-model-len", 2048, "--max-batch", 256,
                "--threads", arguments.threads) as server:
        before, started, gaps = cpu_seconds(server.process), time.monotonic(), []

        async def together():
            await asyncio.gather(*(stream(server.port, i, arguments.tokens, gaps) for i in range(arguments.streams)))

        asyncio.run(together())
        spent = {name: seconds - before.get(name, 0) for name, seconds in cpu_seconds(server.process).items()}
        total = sum(spent.values())
        print(f"{arguments.streams} streams of {arguments.tokens} tokens in {time.monotonic() - started:.1f} s; longest gap in a stream "
              f"{max(gaps):.2f} s, median {statistics.median(gaps):.2f} s; CPU seconds {spent}; HTTP and text "
              f"{100 * spent['polar-http'] / total:.2f} %; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        stalled = max(gaps) > max(5, 20 * statistics.median(gaps))
        failed = stalled or spent["polar-http"] > 0.05 * total
        count = server.metrics()["vllm:time_to_first_token_seconds_count"]
        for prompt in (10, 400, 1000):
            steps, still = asyncio.run(newcomer(server, 64, prompt, count))
            count += 65
            allowed = -(-prompt // (512 - 64)) + 1
            print(f"a prompt of {prompt} tokens beside 64 that decode ({still:.0f} still do): first token after {steps:.0f} steps, "
                  f"at most {allowed} allowed")
            failed |= steps > allowed
        failed |= server.terminate() != 0
    sys.exit(failed)


main()
