#!/usr/bin/env python3
"""Every field of every route with every odd value, and what is not HTTP: each is answered, a refusal has OpenAI's shape and names the
field, and the server serves on.

usage: odd_requests.py POLAR GOLDEN_MODEL_FOLDER
"""

import json
import pathlib
import socket
import sys
import tempfile

from expect import expect, finish
from server import Server
from tiny_model import make_model

ODD = [True, 0, -1, 1.5, 1e308, -1e308, 10**30, -(10**30), "", "x", "\0", [], {}, [[]], [None], {"a": 1}, "9" * 5000, [1] * 200, ["a"] * 5000]
NUMBERS = ["max_tokens", "n", "temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty",
           "repetition_penalty", "min_tokens"]
SHARED = NUMBERS + ["stop", "logit_bias", "ignore_eos", "stop_token_ids", "stream", "stream_options", "polar", "model", "best_of", "suffix",
                    "response_format", "skip_special_tokens", "guided_json"]
ROUTES = {
    "/v1/completions": ({"prompt": "Hi", "max_tokens": 2}, SHARED + ["prompt", "logprobs", "echo", "add_special_tokens"]),
    "/v1/chat/completions": ({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2},
                             SHARED + ["messages", "tools", "logprobs", "top_logprobs", "max_completion_tokens"]),
    "/tokenize": ({"prompt": "Hi"}, ["prompt", "messages", "add_special_tokens"]),
    "/detokenize": ({"tokens": [5]}, ["tokens"])}
NEVER = {  # values that are wrong although they have the right type
    "prompt": [[], [[]], [[], [1]], [-1], [2**31], [2**31 - 1], [96], [1.0], [True], [[1], [-1]], [[1, [2]]], ["a", 5], "a" * 5000, ["a"] * 1025],
    "max_tokens": [-1, 0, 1e5, 2.0], "n": [0, -1, 129], "logprobs": [-1, 21], "temperature": [-0.1], "top_p": [-0.1, 0, 1.1],
    "top_k": [-2], "logit_bias": [{"-1": 1}, {"99": 1}, {"1e2": 1}, {" 5": 1}, {"": 1}, {"5": None}, {"5": 101}, {"5": "1"}],
    "stop": [5, ["a", 5], [None], {"a": "b"}], "stop_token_ids": [[-1], [1.5], ["a"]], "seed": [1.5, "1"], "suffix": ["a"],
    "response_format": [{"type": "json_schema"}, {"type": "json_object"}], "polar": [{"point": 5}, {"trace": "yes"}],
    "stream_options": [{"include_usage": 1}], "messages": [[{"role": "user", "content": content}] for content in
                                                           (5, True, {}, ["a"], [{"type": "image_url", "image_url": {"url": "file:///x"}}])]}
BODIES = [b"", b"null", b"[]", b"1", b'"a"', b"{", b'{"prompt":"\xff\xfe"}', b'{"prompt":"\\ud800"}', b'{"prompt":"a"}x', b"[" * 100000,
          b'{"a":' * 100000, b'{"prompt":"a","max_tokens":NaN}', b'{"prompt":"a","n":1e400}']
WIRE = [  # what is sent, and the status it must get; 0: closed without an answer
    (b"GET /../../etc/passwd HTTP/1.1\r\n\r\n", 404), (b"GET //etc/passwd HTTP/1.1\r\n\r\n", 404),
    (b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\n\r\n", 404), (b"GET /app.js%00 HTTP/1.1\r\n\r\n", 404),
    (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n", 404), (b"GET http://a/health HTTP/1.1\r\n\r\n", 404),
    (b"GET /v1/completions HTTP/1.1\r\n\r\n", 405), (b"OPTIONS /v1/models HTTP/1.1\r\n\r\n", 405), (b"get /health HTTP/1.1\r\n\r\n", 405),
    (b"GET / HTTP/3.7\r\n\r\n", 400), (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400), (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", 400),
    (b"GET /health HTTP/1.1\r\nHost a\r\n\r\n", 400), (b"GET /health HTTP/1.1\r\nX: \0\r\n\r\n", 400),
    (b"GET /health HTTP/1.1\r\n" + b"A: b\r\n" * 20000 + b"\r\n", 431),
    (b"POST /tokenize HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400), (b"POST /tokenize HTTP/1.1\r\nContent-Length: 9" + b"9" * 30 + b"\r\n\r\n", 400),
    (b"POST /tokenize HTTP/1.1\r\nContent-Length: 999999999\r\n\r\n", 413),
    (b"POST /tokenize HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 5\r\n\r\n{}", 400),
    (b"POST /tokenize HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    (b"POST /tokenize HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n", 413),
    (b"POST /tokenize HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    (b'POST /tokenize HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\ne\r\n{"prompt":"a"}\r\n0\r\n\r\n', 200)]


def refusal(status, body, field, what):
    """Status 4xx, OpenAI's error object, and the field's name in it (None: any field or none)."""
    error = body.get("error", {}) if isinstance(body, dict) else {}
    expect(400 <= status < 500 and set(error) == {"message", "type", "param", "code"} and error["message"],
           f"{what}: not a refusal: {status} {str(body)[:200]}")
    expect(field is None or (error.get("param") or "").split(".")[0] == field, f"{what}: names {error.get('param')}: {error.get('message')}")


with tempfile.TemporaryDirectory() as scratch:
    model = make_model(sys.argv[2], pathlib.Path(scratch) / "model")
    with Server(sys.argv[1], model, "--kv-memory", "4MiB", "--max-body", 1) as server:
        asked = answered = 0
        for route, (good, fields) in ROUTES.items():
            for field in fields:
                never = [{**good, field: value} for value in NEVER.get(field, [])]
                if (route, field) in {("/v1/chat/completions", "logprobs"), ("/tokenize", "prompt")}:
                    never = []  # of other types here
                for body in never + [{**good, field: value} for value in ODD]:
                    status, reply = server.request("POST", route, body)
                    asked += 1
                    what = f"{route} {field}={str(body[field])[:60]}"
                    if status == 200 and body not in never:
                        answered += 1
                    else:
                        refusal(status, reply, field, what)
            for body in BODIES:
                refusal(*server.request("POST", route, body), None, f"{route} {body[:30]}")
        expect(50 < answered < asked // 4, f"{answered} of {asked} odd requests were answered")
        for parts, text in (([{"type": "text", "text": "Hi"}], "Hi"), ([{"type": "text", "text": "Hi"}, {"type": "text", "text": "x"}], "Hi\nx")):
            ask = [{"messages": [{"role": "user", "content": content}]} for content in (parts, text)]
            replies = [server.request("POST", "/tokenize", body)[1]["tokens"] for body in ask]
            expect(replies[0] == replies[1], f"text parts are their text: {replies}")
        for sent, wanted in WIRE:
            with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
                connection.sendall(sent)
                got = connection.recv(1 << 16)
                expect(int(got.split()[1]) == wanted, f"{sent[:60]}: wanted {wanted}, got {got[:200]}")
                if wanted >= 400:
                    while b"\r\n\r\n" not in got or not got.endswith(b"}}"):
                        got += connection.recv(1 << 16)
                    refusal(wanted, json.loads(got.partition(b"\r\n\r\n")[2]), None, sent[:60])
        expect(server.request("POST", "/v1/completions", {"prompt": "Hi", "max_tokens": 2, "a field of tomorrow": [1]})[0] == 200, "a good one")
        gauges = server.metrics()
        expect(gauges["vllm:num_requests_running"] == gauges["vllm:num_requests_waiting"] == 0, "nothing is left")
        expect(server.terminate() == 0, f"exit code; {server.stderr}")

finish()
