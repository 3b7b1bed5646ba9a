#!/usr/bin/env python3
"""Freezes what the Python packages numpy, torch, gguf and safetensors say about Polar's file formats.

Run inside this folder; needs numpy, torch, gguf and safetensors. The tests hold the expected values of the tiny
files as the formulas below.
"""
import json
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

here = Path(__file__).parent
rng = np.random.default_rng(20260101)


def conversions():
    """conversions.bin: records of f32 bits, f16 bits, bf16 bits (u32, u16, u16), no NaN."""
    random = rng.integers(0, 2**32, 4096, dtype=np.uint32).view(np.float32)
    middle = (rng.standard_normal(2048) * 10.0 ** rng.integers(-9, 6, 2048)).astype(np.float32)
    values = np.concatenate([random[~np.isnan(random)], middle])
    with np.errstate(over="ignore"):
        half = values.astype(np.float16).view(np.uint16)
    brain = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    records = np.empty(len(values), dtype=[("f32", "<u4"), ("f16", "<u2"), ("bf16", "<u2")])
    records["f32"], records["f16"], records["bf16"] = values.view(np.uint32), half, brain
    records.tofile(here / "conversions.bin")


def random_blocks(kind, blocks):
    """Random bits everywhere, finite f16 scales where the layout has them."""
    values, size = gguf.GGML_QUANT_SIZES[kind]
    data = rng.integers(0, 256, (blocks, size), dtype=np.uint8)
    scales = {"Q8_0": [0], "Q4_0": [0], "Q5_0": [0], "Q4_1": [0, 2], "Q5_1": [0, 2], "Q4_K": [0, 2], "Q5_K": [0, 2],
              "Q6_K": [208]}[kind.name]
    for at in scales:
        scale = (rng.standard_normal(blocks) * 10.0 ** rng.integers(-6, 3, blocks)).astype(np.float16)
        data[:, at:at + 2] = scale.view(np.uint8).reshape(blocks, 2)
    return data


def dequantize():
    """dequantize/<type>.blocks and what gguf.dequantize makes of them, as f32."""
    for name in ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"]:
        kind = gguf.GGMLQuantizationType[name]
        data = random_blocks(kind, 6 if name.endswith("K") else 24)
        data.tofile(here / "dequantize" / f"{name.lower()}.blocks")
        gguf.dequantize(data, kind).astype(np.float32).tofile(here / "dequantize" / f"{name.lower()}.f32")


def quantize():
    """quantize/q4_0: f32 values (zeros, ties, one large value a block) and gguf.quantize's blocks."""
    values = rng.standard_normal((24, 32)).astype(np.float32) * 10.0 ** rng.integers(-4, 3, (24, 1)).astype(np.float32)
    values[0] = 0
    values[1] = np.arange(32) % 3 - 1
    values[2, 7] = -100
    (here / "quantize").mkdir(exist_ok=True)
    values.astype(np.float32).tofile(here / "quantize" / "q4_0.f32")
    gguf.quantize(values.astype(np.float32), gguf.GGMLQuantizationType.Q4_0).tofile(here / "quantize" / "q4_0.blocks")


def ramp(*shape, dtype=torch.float32):
    count = int(np.prod(shape)) if shape else 1
    return ((torch.arange(count, dtype=torch.float32) - 3) / 2).reshape(shape).to(dtype)


def safetensors_files():
    save_file({
        "scalar": ramp(),
        "f32": ramp(2, 3),
        "f16": ramp(3, 1, 2, dtype=torch.float16),
        "bf16": ramp(5, dtype=torch.bfloat16),
        "i32": torch.tensor([[1, -2], [2**31 - 1, -2**31]], dtype=torch.int32),
        "empty": ramp(0, 4),
        "i64": torch.tensor([7, 8]),
        "bool": torch.tensor([True, False, True]),
        "five": ramp(1, 2, 1, 2, 1),
        "name with \"quotes\" and \u00e9": ramp(1),
    }, here / "tiny.safetensors", metadata={"format": "pt", "note": "line\nbreak"})
    shards = {
        "model-00001-of-00002.safetensors": {"a": ramp(4), "b": ramp(2, 2, dtype=torch.float16)},
        "model-00002-of-00002.safetensors": {"c": ramp(3, dtype=torch.bfloat16), "d": torch.tensor([1, 2])},
    }
    weight_map = {}
    for shard, tensors in shards.items():
        save_file(tensors, here / "sharded" / shard, metadata={"format": "pt"})
        weight_map |= {name: shard for name in tensors}
    index = {"metadata": {"total_size": 46, "nested": [{"x": [1, 2.5, None, True]}]}, "weight_map": weight_map}
    (here / "sharded" / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def gguf_file():
    writer = gguf.GGUFWriter(here / "tiny.gguf", "llama")
    writer.add_uint8("t.u8", 200)
    writer.add_int8("t.i8", -100)
    writer.add_uint16("t.u16", 60000)
    writer.add_int16("t.i16", -30000)
    writer.add_uint32("t.u32", 4000000000)
    writer.add_int32("t.i32", -2000000000)
    writer.add_float32("t.f32", 0.15625)
    writer.add_bool("t.true", True)
    writer.add_bool("t.false", False)
    writer.add_string("t.string", "h\u00e9llo\nworld")
    writer.add_key_value("t.empty", "", gguf.GGUFValueType.STRING)  # add_string() drops empty ones
    writer.add_uint64("t.u64", 2**64 - 1)
    writer.add_int64("t.i64", -2**63)
    writer.add_float64("t.f64", 1e300)
    writer.add_array("t.strings", ["a", "", "\u4e2d\u6587", "d" * 300])
    writer.add_array("t.integers", [1, -2, 3])
    writer.add_array("t.floats", [0.5, -1.25])
    rows = ((np.arange(3 * 64, dtype=np.float32) - 70) / 8).reshape(3, 64)
    writer.add_tensor("f32", rows)
    writer.add_tensor("f16", rows.astype(np.float16))
    for name in ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "BF16"]:
        kind = gguf.GGMLQuantizationType[name]
        writer.add_tensor(name.lower(), gguf.quantize(rows, kind), raw_dtype=kind)
    writer.add_tensor("q6_k", random_blocks(gguf.GGMLQuantizationType.Q6_K, 2),
                      raw_dtype=gguf.GGMLQuantizationType.Q6_K)
    writer.add_tensor("cube", np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    # What the package reads back: all tensors in the order of the file, dequantised.
    reader = gguf.GGUFReader(here / "tiny.gguf")
    np.concatenate([gguf.dequantize(t.data, t.tensor_type).astype(np.float32).ravel() for t in reader.tensors]
                   ).tofile(here / "tiny_gguf.f32")


if __name__ == "__main__":
    conversions()
    dequantize()
    safetensors_files()
    gguf_file()
    quantize()
