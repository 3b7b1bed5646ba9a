#!/usr/bin/env python3
"""lm-eval's local-completions against a real server, on two tasks made from a local text; lm-eval's own transformers backend, on the
same tasks, says what must come out.

usage: lm_eval_task.py POLAR MODEL_FOLDER TEXT [--items 100]
       (pip install "lm-eval[api]" torch transformers; documents in TEXT are separated by the byte 0x1E)

`choose` (multiple_choice, log-likelihoods through `echo`): the beginning of a passage and four continuations of equal length in words,
three of them from elsewhere in the document. The number of right answers may differ by one.
`write` (generate_until): the same beginnings are continued greedily up to a line's end; at most one answer in a hundred may differ
(rounding may turn a tie).
"""

import argparse
import json
import os
import pathlib
import random
import sys
import tempfile

parser = argparse.ArgumentParser()
parser.add_argument("polar")
parser.add_argument("model")
parser.add_argument("text")
parser.add_argument("--items", type=int, default=100)
arguments = parser.parse_args()

scratch = tempfile.TemporaryDirectory()
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_HOME=scratch.name, TOKENIZERS_PARALLELISM="false")
import lm_eval  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "e2e"))
from server import Server  # noqa: E402

draw = random.Random(11)
documents = [d.split() for d in pathlib.Path(arguments.text).read_text().split("\x1e")]
documents = [d for d in documents if len(d) > 200]


def passage(words, document):
    start = draw.randrange(len(document) - words)
    return document[start:start + words]


def make_items():
    items = []
    for _ in range(arguments.items):
        document = draw.choice(documents)
        words = passage(40, document)
        choices = [" ".join(passage(6, document)) for _ in range(3)]
        answer = draw.randrange(4)
        choices.insert(answer, " ".join(words[34:]))
        items.append({"context": " ".join(words[:34]), "choices": choices, "answer": answer, "goes_on": " ".join(words[34:])})
    return items


def make_tasks(folder, items):
    """A task is a YAML file, of which JSON is a part."""
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    common = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "items.jsonl")}}, "test_split": "test",
              "doc_to_text": "{{context}}"}
    tasks = {
        "choose": {"output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}",
                   "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]},
        "write": {"output_type": "generate_until", "doc_to_target": "{{goes_on}}",
                  "generation_kwargs": {"until": ["\n"], "max_gen_toks": 16, "do_sample": False, "temperature": 0},
                  "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]}}
    for name, task in tasks.items():
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, **common, **task}))
    return TaskManager(include_path=str(folder), include_defaults=False)


def score(tasks, model, model_args, items):
    """Right answers of `choose`, and the texts of `write` by item."""
    told = lm_eval.simple_evaluate(model=model, model_args=model_args, tasks=["choose", "write"], task_manager=tasks, bootstrap_iters=0)
    written = {sample["doc_id"]: sample["resps"][0][0] for sample in told["samples"]["write"]}
    return round(told["results"]["choose"]["acc,none"] * len(items)), [written[i] for i in range(len(items))]


def complete_folder(model, copy):
    """A model folder without tokenizer_config.json, as transformers needs it: it would guess special tokens that are not there."""
    if (model / "tokenizer_config.json").exists():
        return model
    copy.mkdir()
    for file in model.iterdir():
        (copy / file.name).symlink_to(file.resolve())
    words = {token["id"]: token["content"] for token in json.loads((model / "tokenizer.json").read_text())["added_tokens"]}
    config = json.loads((model / "config.json").read_text())
    special = {f"{kind}_token": words[config[f"{kind}_token_id"]] for kind in ("bos", "eos", "pad")}
    (copy / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **special}))
    return copy


folder, items = pathlib.Path(scratch.name), make_items()
complete = str(complete_folder(pathlib.Path(arguments.model), folder / "model"))
tasks = make_tasks(folder, items)
# As the model was trained, both put its begin-of-text token in front.
both = {"add_bos_token": True, "max_length": 1024}
with Server(arguments.polar, arguments.model, "--kv-dtype", "f32", "--kv-memory", "256MiB", "--served-model-name", "m") as server:
    ours, our_texts = score(tasks, "local-completions", {
        "model": "m", "base_url": f"http://127.0.0.1:{server.port}/v1/completions", "tokenizer_backend": "huggingface",
        "tokenizer": complete, "num_concurrent": 4, **both}, items)
    code = server.terminate()
theirs, their_texts = score(tasks, "hf", {"pretrained": complete, "dtype": "float32", "device": "cpu", "batch_size": 1, **both}, items)
differ = [i for i in range(len(items)) if our_texts[i] != their_texts[i]]
print(f"lm-eval {lm_eval.__version__}, {len(items)} items: of `choose`, polar has {ours} right, transformers {theirs}; of `write`, "
      f"{len(items) - len(differ)} texts are equal; exit code {code}")
for i in differ[:5]:
    print(f"  item {i}: polar {our_texts[i]!r}, transformers {their_texts[i]!r}")
sys.exit(abs(ours - theirs) > 1 or len(differ) > -(-len(items) // 100) or code != 0)
