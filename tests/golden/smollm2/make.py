#!/usr/bin/env python3
"""Logits of SmolLM2-135M-Instruct (the demo's GGUF file) by transformers, which dequantises it to f32: the oracle of src/model/parity_test.cc.

usage: make.py SmolLM2-135M-Instruct.Q4_1.gguf     (needs torch, transformers, accelerate, gguf, safetensors)

golden.safetensors: prompt_<i> I32 [n]; logits_<i> F32 [n, 512]: of every position, every 96th token of the vocabulary.
"""

import pathlib
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

path = pathlib.Path(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32,
                                             attn_implementation="eager").eval()
torch.manual_seed(5)
golden = {}
prompts = [[1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198], torch.randint(3, 49152, (40,)).tolist()]
with torch.no_grad():
    for i, prompt in enumerate(prompts):
        golden[f"prompt_{i}"] = torch.tensor(prompt, dtype=torch.int32)
        golden[f"logits_{i}"] = model(torch.tensor([prompt])).logits[0, :, ::96].float().contiguous()
save_file(golden, pathlib.Path(__file__).parent / "golden.safetensors")
