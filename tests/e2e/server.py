"""`polar serve` as a child process, and a small HTTP client for it: what the tests of the server share."""

import asyncio
import http.client
import json
import re
import signal
import subprocess
import tempfile
import threading


class Server:
    """Starts `polar serve MODEL flags...` on a free port and waits until it is ready."""

    def __init__(self, polar, model, *flags, seconds=300):
        self.process = subprocess.Popen([str(polar), "serve", str(model), "--port", "0", *map(str, flags)],
                                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.port, self.stderr, ready = None, "", threading.Event()

        def drain():
            for line in self.process.stderr:
                self.stderr += line
                found = re.match(r"polar: serving .* at http://.*:(\d+)$", line.rstrip())
                if found:
                    self.port = int(found.group(1))
                    ready.set()
            ready.set()

        self.reader = threading.Thread(target=drain, daemon=True)
        self.reader.start()
        if not ready.wait(seconds) or self.port is None:
            self.process.kill()
            raise RuntimeError("polar serve did not become ready: " + self.stderr)

    def request(self, method, path, body=None, headers=None):
        """Status and body (parsed where it is JSON) of one request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        data = body if body is None or isinstance(body, (bytes, str)) else json.dumps(body)
        connection.request(method, path, data, headers or {})
        reply = connection.getresponse()
        text = reply.read().decode()
        connection.close()
        return reply.status, json.loads(text) if "json" in reply.headers["Content-Type"] else text

    def metrics(self):
        """Name and labels (without the model's name) -> value."""
        text = self.request("GET", "/metrics")[1]
        out = {}
        for line in text.splitlines():
            if line.startswith("#"):
                continue
            name, value = line.rsplit(" ", 1)
            out[re.sub(r'model_name="[^"]*",?', "", name).replace("{}", "")] = float(value)
        return out

    def resident(self):
        """Bytes of memory that the process holds now."""
        with open(f"/proc/{self.process.pid}/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))

    def terminate(self, seconds=60):
        """SIGTERM; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.wait(seconds)

    def wait(self, seconds=60):
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.reader.join(10)
        return code

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Client:
    """One keep-alive connection for asyncio."""

    def __init__(self, port):
        self.port, self.reader, self.writer = port, None, None

    async def open(self):
        if self.writer is None or self.writer.is_closing():
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 24)

    async def send(self, method, path, body=b"", headers=""):
        await self.open()
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.writer.write(f"{method} {path} HTTP/1.1\r\nHost: a\r\n{headers}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        await self.writer.drain()

    async def head(self):
        """Status and headers of the answer."""
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {key.lower(): value for key, value in (line.split(": ", 1) for line in lines[1:] if line)}
        return int(lines[0].split()[1]), headers

    async def chunk(self):
        """The next piece of a chunked answer; empty at its end."""
        size = int(await self.reader.readline(), 16)
        data = await self.reader.readexactly(size)
        await self.reader.readexactly(2)
        return data

    async def body(self, headers):
        if headers.get("transfer-encoding") == "chunked":
            data = b""
            while piece := await self.chunk():
                data += piece
        else:
            data = await self.reader.readexactly(int(headers["content-length"]))
        if headers["connection"] == "close":
            self.close()
        return data

    async def request(self, method, path, body=b"", headers=""):
        """Status, headers and bytes of the whole answer."""
        await self.send(method, path, body, headers)
        status, answer = await self.head()
        return status, answer, await self.body(answer)

    def close(self, abort=False):
        if self.writer is None:
            return
        if abort:
            self.writer.transport.abort()
        else:
            self.writer.close()
        self.writer = None


def stream_events(data):
    """The JSON objects of a stream, which must end with [DONE]."""
    pieces = data.decode().split("\n\n")
    if pieces[-2:] != ["data: [DONE]", ""] or not all(piece.startswith("data: ") for piece in pieces[:-1]):
        raise AssertionError(f"not a stream of events: {data[-300:]!r}")
    return [json.loads(piece[6:]) for piece in pieces[:-2]]


def samples(text):
    """Prometheus' text format, checked line by line: [(name, {label: value}, value)] and {name: type}. Raises AssertionError."""
    label = r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\\\|\\"|\\n)*)"'
    line_form = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:" + label + r",?)*)\})? (\S+)$")
    out, types = [], {}
    assert text.endswith("\n"), "the last line must end"
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in types, f"{name} has two types"
            assert kind in ("counter", "gauge", "histogram", "summary", "untyped"), line
            types[name] = kind
        elif line.startswith("# HELP "):
            assert len(line.split(" ", 3)) == 4, line
        else:
            found = line_form.match(line)
            assert found, f"not a sample: {line!r}"
            labels = dict((key, value) for key, value in re.findall(label, found.group(2) or ""))
            out.append((found.group(1), labels, float(found.group(5))))
    return out, types
