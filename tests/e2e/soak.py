#!/usr/bin/env python3
"""Many clients of every kind against a real server: well-behaved, greedy for connections, rude, slow and broken ones.

usage: soak.py POLAR GOLDEN_MODEL_FOLDER [--requests N] [--clients N] [--seed N]

At the end: every answer was that of a lone run, memory is flat, no page is held, the counters add up, SIGTERM ends the
server with exit code 0.
"""

import argparse
import asyncio
import json
import os
import pathlib
import random
import sys
import tempfile
import time

from server import Client, Server, stream_events
from tiny_model import make_model

LENGTH = 128  # of the model
BAD = [
    b"", b"{", b"null", b"[]", b"[" * 5000, b"\xff\xfe", b'{"prompt": 5}', b'{"prompt": []}', b'{"prompt": [9999999]}',
    b'{"prompt": "a", "max_tokens": -1}', b'{"prompt": "a", "temperature": "hot"}', b'{"prompt": "a", "stop": 7}',
    b'{"prompt": "a", "n": 100000}', b'{"prompt": "a", "logit_bias": {"x": 1}}', b'{"prompt": "a", "model": "other"}',
    b'{"prompt": "a", "response_format": {"type": "json_schema"}}', b'{"prompt": "a", "polar": {"point": "9%"}}',
    b'{"prompt": "' + b"a" * 500 + b'"}', b'{"prompt": "a", "seed": 1e400}',
]


class Soak:
    def __init__(self, arguments, server):
        self.server, self.arguments = server, arguments
        self.random = random.Random(arguments.seed)
        self.failures = []
        self.done = self.seen = self.refused = self.left = 0
        self.output_tokens = 0
        self.half_open = []
        self.cases = [self.make_case(i) for i in range(40)]
        self.kinds = [(self.whole, 40), (self.stream, 25), (self.bad, 10), (self.stopped, 5), (self.other, 8)]
        self.rude = [(self.leave_stream, 8), (self.leave_at_once, 5), (self.half_request, 4), (self.slow, 2)]

    def make_case(self, i):
        """A request whose answer does not depend on what else runs: greedy, or sampled with a seed."""
        draw = self.random
        shared = [7, 11, 13, 17] * 10  # some prompts begin alike, so that pages are shared
        prompt = shared[: draw.choice([0, 0, 16, 33])] + [draw.randrange(2, 95) for _ in range(draw.randrange(1, 50))]
        case = {"prompt": prompt, "max_tokens": draw.randrange(1, LENGTH - len(prompt)), "temperature": 0, "ignore_eos": True,
                "logprobs": draw.randrange(0, 3)}
        if i % 5 == 0:
            case.update(temperature=0.9, seed=i, n=2)
        if i % 7 == 0:
            case.update(echo=True)
        if i % 6 == 0:
            case.update(repetition_penalty=1.2, presence_penalty=0.5)
        return case

    def fail(self, what):
        self.failures.append(what)
        if len(self.failures) < 20:
            print("FAILED:", what, flush=True)

    @staticmethod
    def essence(choices):
        return [(c["text"], c["finish_reason"], c["logprobs"]["tokens"], c["logprobs"]["token_logprobs"]) for c in choices]

    async def lone(self):
        client = Client(self.server.port)
        self.expected = []
        for case in self.cases:
            status, _, body = await client.request("POST", "/v1/completions", case)
            assert status == 200, body
            self.expected.append(self.essence(json.loads(body)["choices"]))
        client.close()

    def count(self, usage, choices):
        self.seen += choices
        self.output_tokens += usage["completion_tokens"]

    async def whole(self, client):
        await self.ask(client, self.random.randrange(len(self.cases)))

    async def ask(self, client, i):
        status, _, body = await client.request("POST", "/v1/completions", self.cases[i])
        answer = json.loads(body)
        if status != 200 or self.essence(answer["choices"]) != self.expected[i]:
            return self.fail(f"case {i} differs from its lone run: {body[:300]!r}")
        self.count(answer["usage"], len(answer["choices"]))

    async def stream(self, client, pause=0.0):
        i = self.random.randrange(len(self.cases))
        ask = {**self.cases[i], "stream": True, "stream_options": {"include_usage": True}}
        await client.send("POST", "/v1/completions", ask)
        status, headers = await client.head()
        if status != 200:
            return self.fail(f"a stream is answered {status}")
        data = b""
        while piece := await client.chunk():
            data += piece
            if pause:
                await asyncio.sleep(pause * self.random.random())
        events = stream_events(data)
        choices = [{"text": "", "finish_reason": None, "logprobs": {"tokens": [], "token_logprobs": []}}
                   for _ in self.expected[i]]
        for event in events:
            for part in event["choices"]:
                choice = choices[part["index"]]
                choice["text"] += part["text"]
                choice["finish_reason"] = part["finish_reason"] or choice["finish_reason"]
                for key in choice["logprobs"]:
                    choice["logprobs"][key] += part["logprobs"][key]
        if self.essence(choices) != self.expected[i]:
            return self.fail(f"streamed case {i} differs from its lone run: {self.essence(choices)} {self.expected[i]}")
        self.count(events[-1]["usage"], len(choices))

    async def slow(self, client):
        await self.stream(client, pause=0.05)

    async def stopped(self, client):
        """A stop string out of a known answer ends it there."""
        i = self.random.randrange(len(self.cases))
        texts = [text for text, *_ in self.expected[i]]
        if self.cases[i].get("echo") or len(texts[0]) < 4:
            return await self.whole(client)
        at = self.random.randrange(len(texts[0]) - 1)
        stop = texts[0][at:at + 2]
        status, _, body = await client.request("POST", "/v1/completions", {**self.cases[i], "stop": [stop]})
        answer = json.loads(body)
        for choice, text in zip(answer["choices"], texts):
            cut = text.find(stop)
            if status != 200 or choice["text"] != (text if cut < 0 else text[:cut]):
                return self.fail(f"case {i} with stop {stop!r}: {choice['text']!r} of {text!r}")
        self.seen += len(texts)

    async def bad(self, client):
        body = self.random.choice(BAD)
        path = self.random.choice(["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
        status, _, text = await client.request("POST", path, body)
        if status == 200 and path == "/tokenize":
            return  # some of them are good prompts
        error = json.loads(text).get("error", {})
        self.refused += 1
        if not 400 <= status < 500 or set(error) != {"message", "type", "param", "code"}:
            self.fail(f"{path} {body[:60]!r} is answered {status} {text[:200]!r}")

    async def other(self, client):
        method, path, body = self.random.choice([
            ("GET", "/metrics", b""), ("GET", "/health", b""), ("GET", "/v1/models", b""), ("GET", "/version", b""),
            ("POST", "/tokenize", {"prompt": "some text"}), ("POST", "/detokenize", {"tokens": [3, 4, 5]}),
            ("HEAD", "/health", None), ("GET", "/../../etc/passwd", b""), ("GET", "/" + "x" * 3000, b"")])
        if method == "HEAD":
            await client.send(method, path)
            status, headers = await client.head()
        else:
            status, _, _ = await client.request(method, path, body)
        wanted = 404 if path.startswith("/..") or "x" in path[1:3] else 200
        self.refused += status == 404
        if status != wanted:
            self.fail(f"{method} {path[:40]} is answered {status}")

    async def leave_stream(self, client):
        """Reads a little of a stream and goes away, politely or not."""
        case = {"prompt": [5, 6, self.random.randrange(2, 90)], "max_tokens": 120, "ignore_eos": True, "stream": True,
                "n": self.random.choice([1, 1, 3])}
        await client.send("POST", "/v1/completions", case)
        await client.head()
        for _ in range(self.random.randrange(4)):
            if not await client.chunk():
                break
        client.close(abort=self.random.random() < 0.5)
        self.left += case["n"]

    async def leave_at_once(self, client):
        case = {**self.random.choice(self.cases), "n": 1}
        await client.send("POST", "/v1/completions", case)
        client.close(abort=self.random.random() < 0.5)
        self.left += 1

    async def half_request(self, client):
        """Sends a part of a request; some of these sockets stay open to the end."""
        body = json.dumps(self.cases[0]).encode()
        whole = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        await client.open()
        client.writer.write(whole[: self.random.randrange(len(whole))])
        await client.writer.drain()
        if len(self.half_open) < 20:
            self.half_open.append(client.writer)
            client.writer = None
        else:
            client.close(abort=self.random.random() < 0.5)

    async def phase(self, requests, kinds):
        functions, weights = zip(*kinds)
        left = requests

        async def run():
            nonlocal left
            client = Client(self.server.port)
            while left > 0:
                left -= 1
                (kind,) = self.random.choices(functions, weights)
                try:
                    await asyncio.wait_for(kind(client), 120)
                except Exception as error:  # whatever goes wrong is a failure of the server
                    self.fail(f"{kind.__name__}: {type(error).__name__} {error}")
                    client.close()
                self.done += 1
                if self.random.random() < 0.1:
                    client.close()
            client.close()

        await asyncio.gather(*(run() for _ in range(self.arguments.clients)))

    async def crowd(self):
        """The longest answers at once: begun together, they outgrow the memory, whatever the machine's speed."""
        longest = sorted(range(len(self.cases)), key=lambda i: -self.cases[i]["max_tokens"])[:20]
        clients = [Client(self.server.port) for _ in longest]
        await asyncio.gather(*(self.ask(client, i) for client, i in zip(clients, longest)))
        for client in clients:
            client.close()
        self.done += len(longest)

    async def idle(self):
        """Waits until nothing runs: those who left were noticed."""
        await asyncio.sleep(0.3)  # until the server has read what they sent
        for _ in range(600):
            metrics = self.server.metrics()
            if metrics["vllm:num_requests_running"] + metrics["vllm:num_requests_waiting"] == 0:
                return metrics
            await asyncio.sleep(0.05)
        self.fail("something runs forever")
        return metrics

    def check(self, condition, what):
        if not condition:
            self.fail(what)

    def check_pages(self, metrics):
        self.check(metrics["vllm:kv_cache_usage_perc"] == 0, f"pages are held: {metrics['vllm:kv_cache_usage_perc']}")
        self.check(metrics["polar:requests_total"] == metrics["polar:requests_finished_total"], "a request never finished")

    async def calm(self, requests):
        """Nobody leaves: every counter is what the clients saw, exactly."""
        before = await self.idle()
        seen, refused, output = self.seen, self.refused, self.output_tokens
        await self.phase(requests, [kind for kind in self.kinds if kind[0] != self.stopped])
        after = await self.idle()

        def grown(name):
            return sum(after[key] - before[key] for key in after if key.split("{")[0] == name)

        self.check(grown("vllm:request_success_total") == self.seen - seen == grown("polar:requests_finished_total"),
                   f"answers: server {grown('vllm:request_success_total')}, clients {self.seen - seen}")
        self.check(grown("polar:requests_cancelled_total") == 0 == grown("polar:clients_gone_total"), "nobody left")
        self.check(grown("polar:requests_refused_total") == self.refused - refused,
                   f"refused: server {grown('polar:requests_refused_total')}, clients {self.refused - refused}")
        self.check(grown("vllm:generation_tokens_total") == self.output_tokens - output,
                   f"tokens: server {grown('vllm:generation_tokens_total')}, clients {self.output_tokens - output}")
        self.check(grown("vllm:time_to_first_token_seconds_count") == self.seen - seen, "one first token for each answer")
        self.check_pages(after)

    async def run(self):
        started = time.monotonic()
        total = self.arguments.requests
        await self.lone()
        await self.calm(total // 10)
        await self.crowd()
        await self.phase(total // 5, self.kinds + self.rude)  # warm-up: caches and the heap reach their size
        await self.idle()
        warm = self.server.resident()
        await self.phase(total - self.done, self.kinds + self.rude)
        metrics = await self.idle()
        end = self.server.resident()
        self.check_pages(metrics)
        success = sum(value for key, value in metrics.items() if key.startswith("vllm:request_success_total"))
        lone = sum(case.get("n", 1) for case in self.cases)
        self.check(self.seen + lone <= success <= self.seen + lone + self.left,
                   f"{success} answers, clients saw {self.seen + lone} and left {self.left}")
        self.check(metrics["polar:requests_cancelled_total"] > 0 and metrics["polar:clients_gone_total"] > 0, "nobody was cancelled")
        self.check(metrics["vllm:num_preemptions_total"] > 0, "memory was never short: the test is too easy")
        self.check(metrics["vllm:prefix_cache_hits_total"] > 0, "no page was shared")
        if "POLAR_SANITIZED" not in os.environ:  # sanitizers hold back what was freed
            self.check(end - warm <= 4 << 20, f"memory grew from {warm >> 10} to {end >> 10} KiB")
        await self.calm(min(100, total // 10))

        # The end: what runs may finish, sockets that hang do not hold the server up.
        last = asyncio.create_task(self.stream(Client(self.server.port)))
        await asyncio.sleep(0.02)
        ended = time.monotonic()
        code = await asyncio.to_thread(self.server.terminate)
        try:
            await last
        except OSError:
            pass  # it came after the signal
        self.check(code == 0, f"SIGTERM ends the server with {code}: {self.server.stderr}")
        self.check(time.monotonic() - ended < 10, "SIGTERM took long")
        print(f"{self.done} requests in {time.monotonic() - started:.1f} s: {self.seen} whole answers, {self.refused} refused, "
              f"{self.left} left early, {int(metrics['polar:requests_cancelled_total'])} cancelled, "
              f"{int(metrics['vllm:num_preemptions_total'])} preempted; "
              f"resident {warm >> 10} KiB after warm-up, {end >> 10} KiB at the end; {len(self.failures)} failures")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("polar")
    parser.add_argument("golden")
    parser.add_argument("--requests", type=int, default=20000)
    parser.add_argument("--clients", type=int, default=48)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model = make_model(arguments.golden, pathlib.Path(scratch) / "model")
        # So little memory and so small a batch that requests wait, share pages and are preempted.
        with Server(arguments.polar, model, "--kv-dtype", "f32", "--kv-memory", "256KiB", "--max-batch", 24, "--threads", 2) as server:
            soak = Soak(arguments, server)
            asyncio.run(soak.run())
    sys.exit(len(soak.failures) > 0)


main()
