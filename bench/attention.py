"""Attention kernels beside cuDNN's SDPA, each in its own process, alternating shape by shape.

  attention.py BENCH_BINARY OUT.json [STAGE...]      stages: copy dense heads pages skew prefill; default all

Prints a table and writes every number. Ratios are medians of `ROUNDS` alternating rounds.
"""
import json
import os
import statistics
import subprocess
import sys
import time

ROUNDS = int(os.environ.get("ROUNDS", "3"))
# batch, KV heads, group, head_dim, tokens
DENSE = [
    (16, 32, 1, 128, 2048), (64, 32, 1, 128, 2048), (16, 8, 4, 128, 4096), (64, 8, 4, 128, 4096), (256, 8, 4, 128, 4096),
    (64, 8, 8, 128, 8192), (64, 72, 1, 128, 2048), (1, 32, 1, 128, 2048), (1, 8, 4, 128, 4096), (1, 32, 1, 128, 32768),
    (1, 8, 4, 128, 32768),
]
HEADS = [(64, 32, 1, 128, 2048), (64, 8, 4, 128, 4096), (256, 8, 4, 128, 4096), (64, 8, 8, 128, 8192), (64, 72, 1, 128, 2048)]
PAGES = [(64, 8, 4, 128, 8192), (48, 32, 1, 128, 3968)]


class Process:
    def __init__(self, *command):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def ask(self, *words):
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"error": "the process ended"}


def main():
    binary, out, stages = sys.argv[1], sys.argv[2], sys.argv[3:] or ["copy", "dense", "heads", "pages", "skew", "prefill"]
    ours = Process(binary, os.environ.get("POOL_GB", "24"))
    peer = Process(sys.executable, os.path.join(os.path.dirname(os.path.abspath(__file__)), "peers/sdpa.py"))
    rows, start = [], time.time()

    def compare(label, shape, asks, bars=None, with_peer=True):
        """Rounds of (each of `asks`, then the peer's dense attention of the same shape)."""
        times, peers, last = {name: [] for name in asks}, [], {}
        for _ in range(ROUNDS):
            for name, words in asks.items():
                last[name] = ours.ask("decode", *shape, *words)
                times[name].append(last[name].get("us", float("nan")))
            if with_peer:
                result = peer.ask("decode", *shape)
                peers.append(result.get("us", float("nan")))
        peer_us = statistics.median(peers) if peers else None
        for name in asks:
            us = statistics.median(times[name])
            row = {"stage": label, "shape": shape, "what": name, "us": us, "rounds": times[name], "peer_us": peer_us,
                   "peer_rounds": peers, "read_bytes": last[name].get("read_bytes"), "dense_bytes": last[name].get("dense_bytes"),
                   "error": last[name].get("error")}
            row["tb_per_s"] = (row["read_bytes"] or 0) / us / 1e6
            row["speedup"] = peer_us / us if peer_us else None
            row["bar"] = (bars or {}).get(name)
            rows.append(row)
            print("%-6s B=%-3d %2dx%-2d S=%-5d %-14s %9.1f us  %.2f TB/s  peer %9.1f us (%.2f TB/s)  %.3fx  bar %s" % (
                label, shape[0], shape[1], shape[2], shape[4], name, us, row["tb_per_s"], peer_us or 0,
                (row["dense_bytes"] or 0) / peer_us / 1e6 if peer_us else 0, row["speedup"] or 0, row["bar"]), flush=True)

    if "copy" in stages:
        for shape in [(64, 32, 1, 128, 2048), (64, 8, 4, 128, 4096), (16, 8, 4, 128, 4096), (1, 8, 4, 128, 4096)]:
            compare("copy", shape, {"product": ("dense", 1, 0), "copy only": ("dense", 1, 1), "not early": ("dense", 1, 2),
                                    "contiguous": ("contiguous", 1, 0)}, with_peer=False)
    if "dense" in stages:
        for shape in DENSE:
            bar = 0.97 if shape[0] > 1 else 0.9 if shape[4] > 4096 else 0.95
            compare("dense", shape, {"dense": ("dense", 1, 0), "with plan": ("plan", 1, 0)}, {"dense": bar})
    if "heads" in stages:
        for shape in HEADS:
            compare("heads", shape, {f"{d} {k}": (k, d, 0) for d in (0.3, 0.5, 0.625) for k in ("heads", "window")},
                    {"0.3 heads": 3.1, "0.5 heads": 1.86, "0.625 heads": 1.49})
        for shape in [(16, 32, 1, 128, 2048), (16, 8, 4, 128, 4096)]:
            compare("heads", shape, {"0.5 heads": ("heads", 0.5, 0)}, {"0.5 heads": 1.7})
    if "pages" in stages:
        for shape in PAGES:
            compare("pages", shape, {f"{d} {k}": (k, d, 0) for d in (0.25, 0.125) for k in ("pages", "select", "pages-codes", "select-codes")},
                    {"0.25 pages": 2.9, "0.125 pages": 4.4 if shape[4] == 8192 else None})
        compare("pages", (1, 8, 4, 128, 131072), {"0.125 pages": ("pages", 0.125, 0), "0.125 select": ("select", 0.125, 0)})
    if "skew" in stages:
        for heads in [(32, 1), (8, 4)]:
            compare("skew", (64, *heads, 128, 1016), {"equal": ("dense", 1, 0), "skew": ("skew", 1, 0)}, with_peer=False)
    if "prefill" in stages:
        peak = peer.ask("matmul", 8192)
        print("matmul", peak, flush=True)
        rows.append({"stage": "prefill", "what": "matmul 8192", **peak})
        for shape in [(8, 8, 4, 128, 2048), (1, 8, 4, 128, 32768)]:
            for _ in range(2):
                mine, theirs = ours.ask("prefill", *shape), peer.ask("prefill", *shape)
            rows.append({"stage": "prefill", "shape": shape, "ours": mine, "peer": theirs})
            share = mine.get("tflop_per_s", 0) / peak.get("tflop_per_s", float("inf"))
            print("prefill", shape, "ours", mine, "peer", theirs, "ours / matmul %.3f" % share, flush=True)
    print("seconds", round(time.time() - start, 1))
    with open(out, "w") as file:
        json.dump({"rounds": ROUNDS, "rows": rows}, file, indent=1)


main()
