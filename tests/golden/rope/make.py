#!/usr/bin/env python3
"""Rotary frequencies as transformers' modeling_rope_utils computes them: the oracle of src/model/rope_test.cc.

usage: make.py > rope.json     (needs torch, transformers; made with transformers 5)

A list of {"config": a config.json, "scale": the factor on cos and sin, "inverse_frequency": [head_dim / 2]}.
"""

import json

from transformers import LlamaConfig, Qwen2Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

CASES = [
    # head_dim, longest context, rope_parameters
    (128, 4096, dict(rope_type="linear", rope_theta=10000.0, factor=8.0)),
    (64, 8192, dict(rope_type="linear", rope_theta=1000000.0, factor=2.5)),
    (128, 131072, dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                       original_max_position_embeddings=8192)),
    (64, 131072, dict(rope_type="llama3", rope_theta=500000.0, factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
                      original_max_position_embeddings=8192)),
    (80, 4096, dict(rope_type="llama3", rope_theta=10000.0, factor=3.0, low_freq_factor=0.5, high_freq_factor=7.0,
                    original_max_position_embeddings=512)),
    (128, 131072, dict(rope_type="yarn", rope_theta=1000000.0, factor=4.0, original_max_position_embeddings=32768)),
    (64, 4096, dict(rope_type="yarn", rope_theta=10000.0, factor=16.0, original_max_position_embeddings=256,
                    beta_fast=16.0, beta_slow=2.0)),
    (96, 4096, dict(rope_type="yarn", rope_theta=10000.0, factor=2.0, original_max_position_embeddings=2048,
                    attention_factor=1.25)),
    (128, 65536, dict(rope_type="yarn", rope_theta=150000.0, factor=32.0, original_max_position_embeddings=2048,
                      truncate=False)),
    (32, 128, dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=4)),
]

out = []
for index, (head_dim, longest, rope) in enumerate(CASES):
    make = LlamaConfig if index % 2 else Qwen2Config
    config = make(num_hidden_layers=2, hidden_size=4 * head_dim, num_attention_heads=4, num_key_value_heads=2,
                  head_dim=head_dim, intermediate_size=64, vocab_size=100, max_position_embeddings=longest,
                  bos_token_id=0, eos_token_id=1, rope_parameters=rope)
    frequency, scale = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, "cpu")
    out.append(dict(config=config.to_dict(), scale=scale, inverse_frequency=[float(f) for f in frequency]))
print(json.dumps(out))
