"""A model for tests through the real program: random weights, and a tokenizer of single printable characters."""

import json
import pathlib
import shutil


def make_model(golden, folder):
    """Copies a golden model to `folder` and gives it a tokenizer and a chat template."""
    folder = pathlib.Path(folder)
    shutil.copytree(golden, folder)
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    letters = ["Ġ", "Ċ"] + [chr(c) for c in range(ord("!"), ord("~") + 1)]
    vocabulary = {letter: i for i, letter in enumerate(letters[: size - 1])}
    vocabulary["<s>"] = len(vocabulary)
    (folder / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": [{"id": vocabulary["<s>"], "content": "<s>", "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": True}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": vocabulary, "merges": []}}))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "bos_token": "<s>",
        "chat_template": "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
                         "{% if add_generation_prompt %}[assistant] {% endif %}"}))
    return folder
