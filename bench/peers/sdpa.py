"""The peer of the attention kernels: cuDNN's SDPA through PyTorch over contiguous KV, one request per line of stdin, one
JSON object per line of stdout (bench/attention.py drives it beside ours).

  decode BATCH KV_HEADS GROUP HEAD_DIM TOKENS    one query token per sequence
  prefill BATCH KV_HEADS GROUP HEAD_DIM TOKENS   causal
  matmul N                                       bf16 N x N x N: what cuBLAS reaches

Decode: at least 4 rotating KV sets, more where they would fit the cache; a timing is a CUDA graph of at least 20 launches; the
faster of two ways to say grouped queries counts.
"""
import json
import statistics
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


def time_graph(launches, queue, repeats=11):
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for i in range(2):
            queue(i)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(launches):
            queue(i)
    times, warm, repeat = [], 0, 0  # milliseconds
    while len(times) < repeats:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        repeat += 1
        if repeat > 2 and warm > 40:
            times.append(begin.elapsed_time(end))
        warm += begin.elapsed_time(end)
    return statistics.median(times) / 1e3 / launches


def decode(batch, kv_heads, group, dim, tokens):
    set_bytes = 4 * batch * kv_heads * tokens * dim
    sets = max(4, 600 * 2**20 // set_bytes + 1)
    def make():
        return torch.randn(batch, kv_heads, tokens, dim, device="cuda", dtype=torch.bfloat16)
    keys, values = [make() for _ in range(sets)], [make() for _ in range(sets)]
    query = torch.randn(batch, kv_heads * group, 1, dim, device="cuda", dtype=torch.bfloat16)
    folded = query.view(batch, kv_heads, group, dim)
    ways = {"folded": lambda i: F.scaled_dot_product_attention(folded, keys[i % sets], values[i % sets])}
    if group > 1:
        ways["grouped"] = lambda i: F.scaled_dot_product_attention(query, keys[i % sets], values[i % sets], enable_gqa=True)
    times = {}
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        for name, queue in ways.items():
            try:
                times[name] = time_graph(max(20, sets), queue)
            except RuntimeError as error:
                print(name, str(error).splitlines()[0], file=sys.stderr)
    way = min(times, key=times.get)
    return {"us": times[way] * 1e6, "way": way, "tb_per_s": set_bytes / times[way] / 1e12}


def prefill(batch, kv_heads, group, dim, tokens):
    query = torch.randn(batch, kv_heads * group, tokens, dim, device="cuda", dtype=torch.bfloat16)
    key, value = (torch.randn(batch, kv_heads, tokens, dim, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    key, value = (x.repeat_interleave(group, 1) for x in (key, value))
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        seconds = time_graph(3, lambda i: F.scaled_dot_product_attention(query, key, value, is_causal=True))
    return {"us": seconds * 1e6, "tflop_per_s": 2 * dim * kv_heads * group * batch * tokens * (tokens + 1) / seconds / 1e12}


def matmul(n):
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = time_graph(10, lambda i: a @ b)
    return {"us": seconds * 1e6, "tflop_per_s": 2 * n**3 / seconds / 1e12}


for line in sys.stdin:
    what, *numbers = line.split()
    try:
        result = {"decode": decode, "prefill": prefill, "matmul": matmul}[what](*map(int, numbers))
    except Exception as error:
        result = {"error": str(error).splitlines()[0]}
    torch.cuda.empty_cache()
    print(json.dumps(result), flush=True)
