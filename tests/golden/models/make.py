#!/usr/bin/env python3
"""Makes tiny random-weight models with transformers, and what they answer: the oracle of src/model/parity_test.cc.

usage: make.py [FOLDER]     (needs torch, transformers, safetensors; made with transformers 5.17)

Each model becomes FOLDER/<name>/ (config.json, model.safetensors or shards) with golden.safetensors beside it:
  prompt_<i>  I32 [n]             token ids
  logits_<i>  F32 [n, vocabulary] logits of every position, computed in f32 on the stored (rounded) weights
  greedy_<i>  I32 [64]            the greedy continuation
"""

import copy
import json
import pathlib
import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, OPTConfig, Qwen2Config, Qwen3Config

OUT = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent)
VOCABULARY = 96
GREEDY = 64

COMMON = dict(vocab_size=VOCABULARY, num_hidden_layers=2, max_position_embeddings=128, bos_token_id=0, eos_token_id=1,
              pad_token_id=2)
GATED = dict(COMMON, intermediate_size=72, initializer_range=0.3)

MODELS = {
    # name: (configuration, stored type, shard size or None, edit of config.json or None)
    "opt": (OPTConfig(**COMMON, hidden_size=32, ffn_dim=80, num_attention_heads=4, word_embed_proj_dim=32, init_std=0.25),
            torch.float16, None, None),
    "opt-post-norm": (OPTConfig(**COMMON, hidden_size=40, ffn_dim=48, num_attention_heads=5, word_embed_proj_dim=24,
                                do_layer_norm_before=False, init_std=0.25), torch.float32, None, None),
    "llama-odd": (LlamaConfig(**GATED, hidden_size=60, num_attention_heads=3, num_key_value_heads=3), torch.float16,
                  None, None),
    "llama-linear": (LlamaConfig(**GATED, hidden_size=48, num_attention_heads=6, num_key_value_heads=2,
                                 tie_word_embeddings=True,
                                 rope_parameters=dict(rope_type="linear", factor=2.0, rope_theta=10000.0)),
                     torch.float32, None, None),
    "llama-3.1": (LlamaConfig(**GATED, hidden_size=42, num_attention_heads=7, num_key_value_heads=1, head_dim=16,
                              rope_parameters=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0,
                                                   high_freq_factor=4.0, original_max_position_embeddings=32,
                                                   rope_theta=500000.0)),
                  torch.bfloat16, "16KB", None),
    "mistral": (MistralConfig(**GATED, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, sliding_window=24,
                              head_dim=8), torch.bfloat16, None, None),
    "llama-published": (LlamaConfig(**GATED, hidden_size=32, num_attention_heads=4, num_key_value_heads=4,
                                    attention_bias=True,
                                    rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=5000.0)),
                        torch.float16, None, "published"),
    "qwen2": (Qwen2Config(**GATED, hidden_size=40, num_attention_heads=4, num_key_value_heads=2,
                          tie_word_embeddings=True,
                          rope_parameters=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32,
                                               rope_theta=10000.0)), torch.bfloat16, None, None),
    "qwen3": (Qwen3Config(**GATED, hidden_size=36, num_attention_heads=5, num_key_value_heads=5, head_dim=16),
              torch.bfloat16, None, None),
}


def published(folder):
    """Rewrites config.json as models published before transformers 5 spell it."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    rope["type"] = rope.pop("rope_type")
    config["rope_scaling"] = rope
    config["torch_dtype"] = config.pop("dtype", "float16")
    path.write_text(json.dumps(config, indent=1) + "\n")


@torch.no_grad()
def main():
    for index, (name, (config, dtype, shards, edit)) in enumerate(MODELS.items()):
        torch.manual_seed(1000 + index)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().float()
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() == 1:  # norms and biases: away from their neutral start
                parameter.add_(torch.randn_like(parameter) * 0.1)
        for parameter in model.parameters():  # not model.to(dtype): that would round the rotary buffers too
            parameter.data = parameter.data.to(dtype).float()
        folder = OUT / name
        folder.mkdir(parents=True, exist_ok=True)
        stored = copy.deepcopy(model).to(dtype)
        stored.save_pretrained(folder, **({"max_shard_size": shards} if shards else {}))
        (folder / "generation_config.json").unlink(missing_ok=True)
        if edit:
            published(folder)
        golden = {}
        for i, length in enumerate((1, 5, 16, 17, 33, 40)):
            prompt = torch.randint(3, VOCABULARY, (length,))
            ids = prompt[None]
            golden[f"prompt_{i}"] = prompt.int()
            golden[f"logits_{i}"] = model(ids).logits[0].float().contiguous()
            for _ in range(GREEDY):
                ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
            golden[f"greedy_{i}"] = ids[0, length:].int().contiguous()
        save_file(golden, folder / "golden.safetensors")
        print(name, sum(f.stat().st_size for f in folder.iterdir()) // 1024, "KiB")


main()
