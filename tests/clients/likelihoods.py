#!/usr/bin/env python3
"""Log-likelihoods of a text's passages, asked three ways: through /v1/completions with `echo`, of transformers, and of `polar eval`.

usage: likelihoods.py POLAR MODEL_FOLDER [--text FILE] [--passages 200] [--tokens 128]       (pip install torch transformers)

Every token must agree with transformers within 1e-3, and the mean of all of them, as of single passages, with `polar eval`'s
perplexity within 1e-4. Passages have `--tokens` tokens each, so that each is one window of `polar eval`. Without --text they are
drawn from the letters of a model without a tokenizer, which gets one of single characters.
"""

import argparse
import concurrent.futures
import json
import math
import pathlib
import random
import subprocess
import sys
import tempfile

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "e2e"))
from server import Server  # noqa: E402
from tiny_model import make_model  # noqa: E402

parser = argparse.ArgumentParser()
parser.add_argument("polar")
parser.add_argument("model", type=pathlib.Path)
parser.add_argument("--text", type=pathlib.Path)
parser.add_argument("--passages", type=int, default=200)
parser.add_argument("--tokens", type=int, default=128)
arguments = parser.parse_args()


def draw_passages(tokenizer):
    """Texts that become exactly --tokens tokens."""
    draw = random.Random(17)
    documents = arguments.text.read_text().split("\x1e") if arguments.text else None
    letters = [letter for letter in map(chr, range(ord("!"), ord("~") + 1)) if tokenizer(letter)["input_ids"]]
    texts = []
    for _ in range(100 * arguments.passages):
        if documents is None:
            text = "".join(draw.choices(letters, k=arguments.tokens))
        else:
            document = draw.choice(documents)
            start = draw.randrange(max(1, len(document) - 4 * arguments.tokens))
            tokens = tokenizer(document[start:start + 12 * arguments.tokens])["input_ids"][:arguments.tokens]
            text = tokenizer.decode(tokens, skip_special_tokens=True)
        if len(tokenizer(text)["input_ids"]) == arguments.tokens:
            texts.append(text)
        if len(texts) == arguments.passages:
            return texts
    sys.exit(f"only {len(texts)} passages of {arguments.tokens} tokens were found")


def evaluate(model, texts, folder):
    """Mean log-likelihood of a token as `polar eval` has it."""
    file = folder / "passages.txt"
    file.write_text("\n\x1e\n".join(texts))
    run = subprocess.run([arguments.polar, "eval", str(model), "--text", str(file), "--context", str(arguments.tokens),
                          "--kv-dtype", "f32", "--format", "json"], capture_output=True, text=True, check=True)
    told = json.loads(run.stdout)
    assert told["tokens"] == len(texts) * (arguments.tokens - 1), told
    return -math.log(told["dense"]["perplexity"])


def mean(passages):
    tokens = [logprob for passage in passages for logprob in passage]
    return sum(tokens) / len(tokens)


with tempfile.TemporaryDirectory() as scratch:
    scratch = pathlib.Path(scratch)
    model = arguments.model
    if not (model / "tokenizer.json").exists():
        model = make_model(model, scratch / "model")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(model / "tokenizer.json"))
    texts = draw_passages(tokenizer)
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()

    with Server(arguments.polar, model, "--kv-dtype", "f32", "--kv-memory", "256MiB") as server:

        def score(text):
            status, body = server.request("POST", "/v1/completions", {"prompt": text, "echo": True, "logprobs": 0, "max_tokens": 0})
            assert status == 200, body
            choice = body["choices"][0]
            told = choice["logprobs"]["token_logprobs"]
            assert told[0] is None and len(told) == arguments.tokens, (len(told), text)
            return told[1:]

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            ours = list(pool.map(score, texts))
        assert server.terminate() == 0

    theirs = []
    with torch.no_grad():
        for text in texts:
            tokens = torch.tensor([tokenizer(text)["input_ids"]])
            logprobs = torch.log_softmax(reference(tokens).logits[0, :-1].double(), -1)
            theirs.append(logprobs.gather(1, tokens[0, 1:, None])[:, 0].tolist())

    worst = max(abs(a - b) for one, other in zip(ours, theirs) for a, b in zip(one, other))
    some = range(0, len(texts), max(1, len(texts) // 4))
    of_eval = [abs(evaluate(model, texts, scratch) - mean(ours))]
    of_eval += [abs(evaluate(model, [texts[i]], scratch) - mean([ours[i]])) for i in some]
    print(f"{len(texts)} passages, {sum(map(len, ours))} tokens, mean log-likelihood {mean(ours):.6f} (transformers {mean(theirs):.6f}): "
          f"largest difference of a token {worst:.2e}; of `polar eval`'s mean over all {of_eval[0]:.2e}, over single passages "
          f"{max(of_eval[1:]):.2e}")
    sys.exit(not (worst <= 1e-3 and max(of_eval) <= 1e-4))
