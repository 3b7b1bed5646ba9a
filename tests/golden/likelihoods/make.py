#!/usr/bin/env python3
"""Freezes what transformers says of passages, token by token: the oracle of tests/e2e/likelihoods.py.

usage: make.py OUT.json MODEL_FOLDER [--text FILE] [--passages N] [--tokens N]      (needs torch and transformers)

With --text: passages from documents (separated by the byte 0x1E) through the model's tokenizer; without: random token ids.
Written is {"passages": [{"tokens": [...], "logprobs": [...of tokens 1, 2, ...]}]}, computed in f32 on the stored weights.
"""

import argparse
import json
import pathlib
import random

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

parser = argparse.ArgumentParser()
parser.add_argument("out")
parser.add_argument("model")
parser.add_argument("--text")
parser.add_argument("--passages", type=int, default=8)
parser.add_argument("--tokens", type=int, default=64)
arguments = parser.parse_args()

draw = random.Random(7)
model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
passages = []
if arguments.text:
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(pathlib.Path(arguments.model) / "tokenizer.json"))
    documents = pathlib.Path(arguments.text).read_text().split("\x1e")
    for _ in range(arguments.passages):
        document = draw.choice(documents)
        start = draw.randrange(max(1, len(document) - 4 * arguments.tokens))
        length = draw.randrange(2, arguments.tokens + 1)
        passages.append(tokenizer(document[start:start + 8 * arguments.tokens])["input_ids"][:length])
else:
    for _ in range(arguments.passages):
        passages.append([draw.randrange(model.config.vocab_size) for _ in range(draw.randrange(2, arguments.tokens + 1))])

out = []
with torch.no_grad():
    for tokens in passages:
        logprobs = torch.log_softmax(model(torch.tensor([tokens])).logits[0].double(), -1)
        out.append({"tokens": tokens, "logprobs": [round(float(logprobs[i, token]), 6) for i, token in enumerate(tokens[1:])]})
lines = ",\n".join(json.dumps(one, separators=(",", ":")) for one in out)
pathlib.Path(arguments.out).write_text(f'{{"passages": [\n{lines}\n]}}\n')
