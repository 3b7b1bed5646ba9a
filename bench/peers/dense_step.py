"""The peer of a whole decode step: one dense step of dummy weights in one CUDA graph. cuBLAS products, cuDNN's SDPA over
contiguous KV, pointwise parts fused by torch.compile, bf16.

  dense_step.py SHAPE BATCH CONTEXT        prints one JSON object
"""
import json
import statistics
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

# layers, hidden, heads, KV heads, ffn, vocabulary, family
SHAPES = {
    "opt-6.7b": (32, 4096, 32, 32, 16384, 50272, "opt"),
    "opt-30b": (48, 7168, 56, 56, 28672, 50272, "opt"),
    "llama-2-7b": (32, 4096, 32, 32, 11008, 32000, "llama"),
    "llama-2-13b": (40, 5120, 40, 40, 13824, 32000, "llama"),
    "llama-3.1-8b": (32, 4096, 32, 8, 14336, 128256, "llama"),
    "mistral-7b": (32, 4096, 32, 8, 14336, 32000, "llama"),
    "qwen2.5-7b": (28, 3584, 28, 4, 18944, 152064, "qwen2"),
    "qwen2.5-14b": (48, 5120, 40, 8, 13824, 152064, "qwen2"),
    "qwen3-8b": (36, 4096, 32, 8, 12288, 151936, "qwen3"),
}
DIM = 128


def main():
    name, batch, context = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    layers, hidden, heads, kv_heads, ffn, vocabulary, family = SHAPES[name]
    opt = family == "opt"
    torch.manual_seed(0)
    make = lambda *shape: torch.empty(*shape, dtype=torch.bfloat16, device="cuda").normal_(0, 0.02)
    width = (heads + 2 * kv_heads) * DIM
    weights = [{"qkv": make(width, hidden), "out": make(hidden, heads * DIM), "up": make(ffn * (1 if opt else 2), hidden),
                "down": make(hidden, ffn), "bias": make(width) if opt or family == "qwen2" else None,
                "out_bias": make(hidden) if opt else None, "up_bias": make(ffn) if opt else None,
                "down_bias": make(hidden) if opt else None} for _ in range(layers)]
    keys = [make(batch, kv_heads, context, DIM) for _ in range(layers)]
    values = [make(batch, kv_heads, context, DIM) for _ in range(layers)]
    embedding, head = make(vocabulary, hidden), make(vocabulary, hidden)
    gain, bias, gain_head = make(hidden), make(hidden), make(DIM)
    tokens = torch.randint(vocabulary, (batch,), device="cuda")
    angle = torch.rand(DIM // 2, device="cuda") * context
    cos, sin = torch.cos(angle).to(torch.bfloat16), torch.sin(angle).to(torch.bfloat16)

    def norm(x, delta):
        x = x + delta
        y = F.layer_norm(x, (hidden,), gain, bias) if opt else F.rms_norm(x, (hidden,), gain, 1e-5)
        return x, y

    def turn(x):
        a, b = x[..., : DIM // 2], x[..., DIM // 2:]
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    def store(qkv, k_cache, v_cache):
        q, k, v = qkv.view(batch, -1, DIM).split((heads, kv_heads, kv_heads), 1)
        if family == "qwen3":
            q, k = F.rms_norm(q, (DIM,), gain_head, 1e-6), F.rms_norm(k, (DIM,), gain_head, 1e-6)
        if not opt:
            q, k = turn(q), turn(k)
        k_cache[:, :, context - 1] = k
        v_cache[:, :, context - 1] = v
        return q.contiguous()

    def gate(h):
        if opt:
            return F.relu(h)
        a, b = h.chunk(2, -1)
        return F.silu(a) * b

    norm, store, gate = (torch.compile(f, dynamic=False) for f in (norm, store, gate))

    def attend(q, k, v):
        group = heads // kv_heads  # query heads of a KV head as query positions: one read of K and V
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return F.scaled_dot_product_attention(q.view(batch, kv_heads, group, DIM), k, v).reshape(batch, heads * DIM)

    def step():
        x = F.embedding(tokens, embedding)
        delta = torch.zeros_like(x)
        for i, w in enumerate(weights):
            x, y = norm(x, delta)
            q = store(F.linear(y, w["qkv"], w["bias"]), keys[i], values[i])
            delta = F.linear(attend(q, keys[i], values[i]), w["out"], w["out_bias"])
            x, y = norm(x, delta)
            delta = F.linear(gate(F.linear(y, w["up"], w["up_bias"])), w["down"], w["down_bias"])
        x, y = norm(x, delta)
        return F.linear(y, head)

    with torch.no_grad():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        times = []
        for i in range(23):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            if i > 2:
                times.append(begin.elapsed_time(end))
    print(json.dumps({"bench": "peer_step", "model": name, "batch": batch, "context": context,
                      "decode_step_ms": statistics.median(times), "device": torch.cuda.get_device_name()}))


main()
