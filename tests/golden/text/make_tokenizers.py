#!/usr/bin/env python3
"""Freezes the `tokenizers` package: small tokenizers in the style of published ones, and what they make of texts.

Writes <style>.tokenizer.json (trained here; components copied from the published files of that style) and
<style>.cases.jsonl: one case a line, [text, ids with special tokens, decoded, decoded_skip]. `decoded` is null when
decode(ids without special tokens) gives the text back; `decoded_skip` is there when decode(ids, skip_special_tokens=True)
differs from that.

Usage: make_tokenizers.py TRAINING_TEXT [--opt FOLDER] [--smollm2 FILE.gguf]
Made with tokenizers 0.23.3 and sentencepiece 0.2.3.
"""

import argparse
import json
import pathlib
import random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from texts import CODE, EMOJI, SCRIPTS, texts

HERE = pathlib.Path(__file__).parent
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
         r"|\s+(?!\S)|\s+")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
          r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
          r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def training_lines(path):
    text = pathlib.Path(path).read_text(errors="replace")[:400_000]
    extra = SCRIPTS * 30 + EMOJI * 30 + CODE * 30
    return text.split("\n") + extra


def special(content, **flags):
    return AddedToken(content, special=True, normalized=False, **flags)


def byte_level(lines, size, specials, pre_tokenizer, normalizer=None, ignore_merges=False):
    tok = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer:
        tok.normalizer = normalizer
    tok.pre_tokenizer = pre_tokenizer
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(lines, trainers.BpeTrainer(
        vocab_size=size, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return tok


def split_then_bytes(pattern):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def gpt2(lines):
    tok = byte_level(lines, 1200, [special("<|endoftext|>")], pre_tokenizers.ByteLevel(add_prefix_space=False))
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    return tok


def opt(lines):
    """Also RoBERTa's: a space in front of every part, </s> in front."""
    tok = byte_level(lines, 1000, [special("<s>"), special("<pad>"), special("</s>"), special("<unk>"), special("<mask>", lstrip=True)],
                     pre_tokenizers.ByteLevel(add_prefix_space=True))
    tok.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=True)
    return tok


def llama3(lines):
    tok = byte_level(lines, 1300, [], split_then_bytes(LLAMA3), ignore_merges=True)
    tok.add_special_tokens([special("<|begin_of_text|>"), special("<|end_of_text|>"), special("<|start_header_id|>"),
                            special("<|end_header_id|>"), special("<|eot_id|>")])
    bos = tok.token_to_id("<|begin_of_text|>")
    tok.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
                                      special_tokens=[("<|begin_of_text|>", bos)])])
    return tok


def qwen2(lines):
    tok = byte_level(lines, 1200, [], split_then_bytes(QWEN2), normalizers.NFC())
    tok.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tok.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tok.add_special_tokens([special("<|endoftext|>"), special("<|im_start|>"), special("<|im_end|>")])
    tok.add_tokens([AddedToken("<tool_call>", normalized=False, special=False), AddedToken("</think>", normalized=False, special=False)])
    return tok


def smollm(lines):
    return byte_level(lines, 1000, [special("<|endoftext|>"), special("<|im_start|>"), special("<|im_end|>")],
                      pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                               pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]))


def tekken(lines):
    tok = byte_level(lines, 1000, [special("<unk>"), special("<s>"), special("</s>"), special("[INST]"), special("[/INST]")],
                     split_then_bytes(TEKKEN), ignore_merges=True)
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)])
    return tok


def sentence_piece(lines, size):
    """A vocabulary like SentencePiece's: three control tokens, 256 bytes, merges over words that begin with U+2581."""
    names = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    trainer = Tokenizer(models.BPE(byte_fallback=True))
    trainer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    trainer.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=size, special_tokens=names, show_progress=False, limit_alphabet=200))
    state = json.loads(trainer.to_str())["model"]
    merges = [tuple(m) for m in state["merges"]]
    return Tokenizer(models.BPE(vocab=state["vocab"], merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))


def llama2(lines):
    """The older form: everything in the normalizer, added tokens that are normalised."""
    tok = sentence_piece(lines, 1100)
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tok.add_special_tokens([AddedToken(t, special=True, normalized=True) for t in ("<unk>", "<s>", "</s>")])
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)])
    return tok


def mistral(lines):
    """The newer form: Metaspace, a space in front of the first part only, control tokens in the text."""
    tok = sentence_piece(lines, 1100)
    tok.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tok.add_special_tokens([special(t) for t in ("<unk>", "<s>", "</s>", "[INST]", "[/INST]")])
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tok.post_processor = processors.TemplateProcessing(single="<s> $A </s>", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1), ("</s>", 2)])
    return tok


def odd(lines):
    """No published model: the remaining components and flags in one file."""
    tok = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=False))
    tok.normalizer = normalizers.Sequence([
        normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(), normalizers.Replace(Regex(r"[0-9]{2,}"), "#"),
        normalizers.Replace("``", '"'), normalizers.Strip(left=False, right=True), normalizers.NFKC()])
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"\s+"), "merged_with_next"), pre_tokenizers.Split("-", "merged_with_previous"),
        pre_tokenizers.Digits(individual_digits=False), pre_tokenizers.Punctuation("contiguous"),
        pre_tokenizers.Split(Regex("[aeiou]x"), "removed"), pre_tokenizers.Metaspace(prepend_scheme="never", split=True)])
    tok.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>"], show_progress=False, limit_alphabet=150))
    tok.add_special_tokens([special("<|A|>", lstrip=True), special("<|B|>", rstrip=True), special("<|C|>", lstrip=True, rstrip=True),
                            special("<|AB|>"), special("<|A|>x")])
    tok.add_tokens([AddedToken("Day", single_word=True, normalized=True), AddedToken("mask", single_word=True, lstrip=True, normalized=False),
                    AddedToken("ÉTÉ", normalized=True), AddedToken("  ", normalized=False)])
    tok.decoder = decoders.Metaspace(prepend_scheme="never")
    return tok


STYLES = {"gpt2": (gpt2, 11), "opt": (opt, 12), "llama3": (llama3, 13), "qwen2": (qwen2, 14), "smollm": (smollm, 15), "tekken": (tekken, 16),
          "llama2": (llama2, 17), "mistral": (mistral, 18), "odd": (odd, 19)}


def specials_of(tok):
    return [t.content for t in tok.get_added_tokens_decoder().values() if not t.content.startswith("<0x")]


def decoding_twin(tok):
    """The same tokenizer for decoding. tokenizers 0.23 decodes an added token with normalized=true to its normal form and
    then no longer knows it as special (Llama-2's <s> would stay in the text): Polar gives the token's own content, as
    earlier versions did, and so does a twin whose added tokens are not normalised."""
    state = json.loads(tok.to_str())
    for token in state["added_tokens"]:
        token["normalized"] = False
    return Tokenizer.from_str(json.dumps(state))


def freeze(name, tok, seed, count=2000):
    lines = []
    twin = decoding_twin(tok)
    for text in texts(seed, count, specials_of(tok)):
        ids = tok.encode(text, add_special_tokens=True).ids
        decoded = twin.decode(tok.encode(text, add_special_tokens=False).ids, skip_special_tokens=False)
        skipped = twin.decode(ids, skip_special_tokens=True)
        case = [text, ids, None if decoded == text else decoded] + ([skipped] if skipped != decoded else [])
        lines.append(json.dumps(case, ensure_ascii=False, separators=(",", ":")))
    (HERE / f"{name}.cases.jsonl").write_text("\n".join(lines) + "\n")


def gguf_vocab(path, merge_count):
    """The fields of a GGUF file's tokenizer, cut down to its first merges and what they need."""
    from gguf import GGUFReader
    field = {k.rsplit("tokenizer.ggml.", 1)[1]: f.contents() for k, f in GGUFReader(path).fields.items() if k.startswith("tokenizer.ggml.")}
    merges = field["merges"][:merge_count]
    made = {m.replace(" ", "") for m in merges}
    keep = [i for i, t in enumerate(field["tokens"]) if field["token_type"][i] != 1 or len(t) == 1 or t in made]
    return field | {"merges": merges, "tokens": [field["tokens"][i] for i in keep], "token_type": [field["token_type"][i] for i in keep]}


def smollm2_tokenizer(field):
    """The published tokenizer of SmolLM2, rebuilt around a GGUF vocabulary."""
    tok = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(field["tokens"])}, merges=[tuple(m.split(" ")) for m in field["merges"]]))
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([special(t) for i, t in enumerate(field["tokens"]) if field["token_type"][i] == 3])
    return tok


def freeze_gguf(path):
    small = gguf_vocab(path, 700)
    (HERE / "gguf_gpt2.vocab.json").write_text(json.dumps(small, ensure_ascii=False, separators=(",", ":")) + "\n")
    freeze("gguf_gpt2", smollm2_tokenizer(small), 31)


def freeze_sentence_piece(lines, seed, count=2000):
    """GGUF's "llama" kind: a vocabulary trained by SentencePiece itself, with a space in front of the text and behind every
    control token, as llama.cpp defines it."""
    import io
    import re
    import sentencepiece
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type="bpe", vocab_size=900, byte_fallback=True, character_coverage=0.98,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2, num_threads=1)
    sp = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    kinds = [2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 6 if sp.is_byte(i) else 1 for i in range(len(sp))]
    field = {"model": "llama", "tokens": [sp.id_to_piece(i) for i in range(len(sp))], "scores": [sp.get_score(i) for i in range(len(sp))],
             "token_type": kinds, "bos_token_id": sp.bos_id(), "eos_token_id": sp.eos_id(), "unknown_token_id": sp.unk_id()}
    (HERE / "gguf_llama.vocab.json").write_text(json.dumps(field, ensure_ascii=False, separators=(",", ":")) + "\n")
    decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    control = {"<unk>": 0, "<s>": 1, "</s>": 2}
    out = []
    for text in texts(seed, count, list(control)):
        if "\x00" in text:
            continue
        ids = []
        for part in re.split("(<unk>|<s>|</s>)", text):
            ids += [control[part]] if part in control else sp.encode(part)
        decoded = decoder.decode([sp.id_to_piece(i) for i in ids])
        skipped = decoder.decode([sp.id_to_piece(i) for i in ids if i > 2])
        case = [text, [1] + ids, None if decoded == text else decoded] + ([skipped] if skipped != decoded else [])
        out.append(json.dumps(case, ensure_ascii=False, separators=(",", ":")))
    (HERE / "gguf_llama.cases.jsonl").write_text("\n".join(out) + "\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("text")
    parser.add_argument("--opt")
    parser.add_argument("--smollm2")
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    lines = training_lines(args.text)
    for name, (build, seed) in STYLES.items():
        if args.only and name not in args.only.split(","):
            continue
        tok = build(lines)
        state = json.loads(tok.to_str())
        (HERE / f"{name}.tokenizer.json").write_text(json.dumps(state, ensure_ascii=False, separators=(",", ":")) + "\n")
        freeze(name, tok, seed)
    if not args.only or "gguf_llama" in args.only:
        freeze_sentence_piece(lines, 33, 2100)
    if args.opt:
        freeze("opt-42m-docs", Tokenizer.from_file(f"{args.opt}/tokenizer.json"), 21)
    if args.smollm2:
        freeze_gguf(args.smollm2)


if __name__ == "__main__":
    main()
