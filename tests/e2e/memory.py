#!/usr/bin/env python3
"""What `polar generate` holds in memory under load is bounded: the model's mapped file, the KV budget and 150 MB.

Many long prompts on SmolLM2 (POLAR_SMOLLM2 names the file; without it the test is skipped), dense and with the profile that ships.

usage: memory.py POLAR
"""

import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

from expect import expect, finish

KV_BYTES = 128 << 20
PROMPTS = 16
MOST_BESIDE = 150_000_000
PROFILE = pathlib.Path(__file__).resolve().parents[2] / "profiles" / "SmolLM2-135M-Instruct"


def resident_bytes(pid):
    """The most a process has held resident so far, mapped file pages included; 0 when it is gone."""
    try:
        for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


def write_prompts(path, seed):
    """Prompts of 200 to 1,800 tokens, some with what takes memory: log-probabilities, penalties, several answers."""
    words = "the a river stone winter engine light paper city garden small never always under over north sea".split()
    generator = random.Random(seed)
    with open(path, "w") as out:
        for i in range(PROMPTS):
            text = " ".join(generator.choice(words) for _ in range(generator.choice([200, 700, 1800])))
            line = {"prompt": text, "max_tokens": 24, "ignore_eos": True}
            if i % 6 == 1:
                line.update(logprobs=5, prompt_logprobs=5)
            if i % 6 == 3:
                line.update(repetition_penalty=1.1, temperature=0.8)
            if i % 6 == 5:
                line.update(n=3, temperature=1.0)
            out.write(json.dumps(line) + "\n")


def peak_of(command):
    """The most a command holds resident while it runs."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, resident_bytes(process.pid))
        time.sleep(0.05)
    expect(process.returncode == 0, f"{command} exits 0: {process.stderr.read()}")
    return peak


def main():
    polar = sys.argv[1]
    model = os.environ.get("POLAR_SMOLLM2", "")
    if not os.path.exists(model):
        print("skipped: POLAR_SMOLLM2 does not name the model's file")
        sys.exit(77)
    if "POLAR_SANITIZED" in os.environ:
        print("skipped: sanitizers hold back what was freed")
        sys.exit(77)
    most = os.path.getsize(model) + KV_BYTES + MOST_BESIDE
    with tempfile.TemporaryDirectory() as folder:
        prompts = os.path.join(folder, "prompts.jsonl")
        write_prompts(prompts, 7)
        for name, flags in [("dense", []), ("sparse", ["--profile", str(PROFILE)])]:
            answers = os.path.join(folder, name + ".jsonl")
            command = [polar, "generate", model, "--prompts", prompts, "--out", answers, "--max-batch", "16", "--device", "cpu",
                       "--kv-memory", str(KV_BYTES), *flags]
            peak = peak_of(command)
            lines = pathlib.Path(answers).read_text().splitlines()
            expect(len(lines) == PROMPTS and all("error" not in json.loads(line) for line in lines), "every prompt is answered")
            longest = max(json.loads(line)["usage"]["prompt_tokens"] for line in lines)
            expect(longest > 1700, f"prompts are long: {longest} tokens")
            # The prompts fill the cache: were less resident, something would be measured wrongly.
            expect(peak > KV_BYTES, f"{peak} bytes are resident")
            print(f"{name}: {peak / 1e6:.1f} MB resident at most, {most / 1e6:.1f} MB allowed: file "
                  f"{os.path.getsize(model) / 1e6:.1f}, KV {KV_BYTES / 1e6:.1f}, 150 beside")
            expect(peak <= most, f"{name}: {peak} bytes resident, {most} allowed")
    finish(10)


main()
