#!/usr/bin/env python3
"""The page of polar serve in a headless browser, used with the keyboard alone.

usage: page.py POLAR GOLDEN_MODEL_FOLDER [SCREENSHOT_FOLDER]

Needs Python's playwright and a Chromium: POLAR_CHROMIUM, one on the PATH, or playwright's own. Without them it says so and
ends with 77. With POLAR_PAGE_MODEL (and POLAR_PAGE_PROFILE) it runs that model instead of a small one of random weights.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request

from expect import expect, finish
from tiny_model import make_model

try:
    from playwright.sync_api import sync_playwright
except ImportError:
    print("skipped: Python's playwright is not installed")
    sys.exit(77)

polar, golden = sys.argv[1], pathlib.Path(sys.argv[2])
pictures = pathlib.Path(sys.argv[3]) if len(sys.argv) > 3 else None


def make_longer_model(folder):
    """The small model of the other tests, for longer texts."""
    make_model(golden, folder)
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] = 32768
    config.pop("eos_token_id", None)  # an answer ends where it is told to
    (folder / "config.json").write_text(json.dumps(config))
    return folder, config["num_hidden_layers"], config["num_key_value_heads"]


def make_profile(folder, layers, kv_heads):
    """Dense, and a mix in which every kind of unit comes up. Nothing was measured with it, and so it says."""
    kinds = ["full", "window", "none", "pages:400"]
    quality = {"max_loss": 0, "perplexity_ratio": 0, "kl": 0, "agreement": 0, "effective_density": 1, "text": ""}
    mix = [[kinds[(head + layer) % 4] for head in range(kv_heads)] for layer in range(layers)]
    folder.mkdir()
    (folder / "profile.json").write_text(json.dumps({
        "version": 1, "model": "", "layers": layers, "kv_heads": kv_heads, "context_min": 0, "context_max": 0, "points": [
            {"name": "dense", "sink": 1, "recent": 4, "quality": quality, "budget": [["full"] * kv_heads] * layers},
            {"name": "mix", "sink": 1, "recent": 2, "quality": quality, "budget": mix}]}))
    return folder


class Server:
    def __init__(self, model, profile):
        flags = ["--profile", str(profile)] if profile else []
        self.process = subprocess.Popen([polar, "serve", str(model), *flags, "--port", "0", "--kv-memory", "256MiB", "--device", "cpu"],
                                        stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            found = re.search(r"http://\S+", line)
            if found:
                self.url = found.group(0)
                return
        sys.exit("the server ended before it was ready")

    def ask(self, path, body):
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        return json.load(urllib.request.urlopen(request, timeout=300))

    def stop(self):
        self.process.terminate()
        return self.process.wait(60)


# The smallest contrast (WCAG) of any visible text with what lies behind it, and where.
CONTRAST = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = numbers(getComputedStyle(node).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  let least = [99, ""];
  for (const node of document.querySelectorAll("body *")) {
    const text = [...node.childNodes].filter((n) => n.nodeType === 3).map((n) => n.data.trim()).join("");
    if (!text || !node.checkVisibility() || node.closest("noscript, option")) continue;
    const [a, b] = [light(numbers(getComputedStyle(node).color)), light(behind(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < least[0]) least = [ratio, `${node.tagName}.${node.className}: ${text.slice(0, 30)}`];
  }
  return least;
}"""

SHARES = "() => [...document.querySelectorAll('#map i')].map((cell) => cell.style.getPropertyValue('--share'))"


class Keyboard:
    """A page on which nothing but keys is used."""

    def __init__(self, page):
        self.page = page

    def focused(self):
        return self.page.evaluate("document.activeElement.id")

    def to(self, target):
        """Tabs until the element has the focus."""
        for _ in range(80):
            if self.focused() == target:
                return True
            self.page.keyboard.press("Tab")
        expect(False, f"Tab reaches #{target}")
        return False

    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)

    def replace(self, target, text):
        self.to(target)
        self.press("Control+a")
        self.page.keyboard.insert_text(text)

    def choose(self, target, name):
        self.to(target)
        self.page.keyboard.type(name)
        expect(self.page.eval_on_selector(f"#{target}", "(e) => e.value") == name, f"#{target} is {name}")


def until(page, condition, arg=None, seconds=60):
    """Waits for an expression or function of the page. (Playwright's own way of waiting needs eval, which the page forbids.)"""
    end = time.monotonic() + seconds
    while not page.evaluate(condition, arg):
        if time.monotonic() > end:
            raise TimeoutError(condition)
        time.sleep(0.02)


def text(page, selector):
    return page.text_content(selector) or ""


def wait_for_answer(page, answers):
    until(page, "(n) => document.querySelectorAll('.assistant').length === n && !document.querySelector('.writing')", answers, 240)


def chat(page, keys, question):
    """The page opens, a key leads to the message, and the answer comes in pieces; the map lights up."""
    until(page, "document.getElementById('state').textContent === 'ready' && document.querySelector('#map i')")
    until(page, "document.getElementById('point').value !== ''")
    dark = page.evaluate(SHARES)
    expect(all(float(share) == 0 for share in dark), "the map is empty at first")
    keys.press("Tab", "Enter")  # the link that skips to the message
    expect(keys.focused() == "message", "the first link leads to the message")
    page.keyboard.insert_text(question)
    keys.press("Enter")
    wait_for_answer(page, 1)
    answer = text(page, ".assistant .text")
    expect(len(answer) > 0, "an answer")
    expect(page.evaluate("document.querySelector('.assistant .text').childNodes.length") > 3, "the answer came in pieces")
    expect(re.search(r"\d+ tokens · [\d.–]+ tokens/s", text(page, ".assistant .meta")), "the answer's facts: " + text(page, ".assistant .meta"))
    expect(keys.focused() == "message", "the focus stays at the message")
    lit = page.evaluate(SHARES)
    expect(lit != dark and max(map(float, lit)) == 1, "the map changed")
    expect(re.search(r"The newest token read \d+ % of the pages", text(page, "#map-summary")), "what was read: " + text(page, "#map-summary"))
    expect("saved" in text(page, "#saved"), "bytes saved: " + text(page, "#saved"))
    return answer


def microscope(page, keys, server, question, point, answer):
    """The map shows what the server says of the same question."""
    keys.to("map")
    keys.press("ArrowRight", "ArrowRight")
    expect(text(page, "#map-cell").startswith("Layer 1, KV head 0: "), "arrows move in the map: " + text(page, "#map-cell"))
    newest = page.evaluate("document.querySelector('input[name=span]:checked').value")
    for _ in range(5):  # back to the choice above the map
        if page.evaluate("document.activeElement.name") == "span":
            break
        keys.press("Shift+Tab")
    keys.press("ArrowRight")
    expect(newest == "newest" and page.evaluate("document.querySelector('input[name=span]:checked').value") == "all", "the whole answer is shown")
    reply = server.ask("/v1/chat/completions", {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 256,
                                                "polar": {"point": point, "trace": True}})["choices"][0]
    expect(reply["message"]["content"] == answer, "the page's answer is the server's")
    trace = reply["polar"]["trace"]
    heads = len(trace["pages_read"][0])
    expected = [trace["pages_read"][layer][head] / dense for head in range(heads) for layer, dense in enumerate(trace["pages_dense"])]
    shown = [float(share) for share in page.evaluate(SHARES)]
    expect(len(shown) == len(expected) and all(abs(a - b) < 0.001 for a, b in zip(shown, expected)), "the map shows the server's shares")
    read = sum(map(sum, trace["pages_read"]))
    expect(f"{read:,} of {heads * sum(trace['pages_dense']):,}" in text(page, "#map-summary"), "the sums: " + text(page, "#map-summary"))


def run_comparison(page, keys, left, right, tokens):
    keys.choose("left", left)
    keys.choose("right", right)
    keys.replace("compare-tokens", str(tokens))
    keys.press("Enter")
    until(page, "/difference/.test(document.getElementById('verdict').textContent)", seconds=240)
    return text(page, "#verdict")


def compare(page, keys, server, point, tokens):
    """The mark stands where the server's own answers part; two equal answers have none."""
    keys.to("sample")
    keys.press("Enter")
    prompt = page.input_value("#compare-prompt")
    expect("Shelf 60" in prompt, "a long sample")
    verdict = run_comparison(page, keys, "dense", point, tokens)
    ids = []
    for name in ("dense", point):
        reply = server.ask("/v1/chat/completions", {"messages": [{"role": "user", "content": prompt.strip()}], "temperature": 0,
                                                    "max_tokens": tokens, "logprobs": True, "polar": {"point": name}})
        ids.append([token["bytes"] for token in reply["choices"][0]["logprobs"]["content"]])
    both = min(map(len, ids))
    at = next((i for i in range(both) if ids[0][i] != ids[1][i]), both if len(ids[0]) != len(ids[1]) else -1)
    if at < 0:
        expect(verdict == f"No difference in {len(ids[0])} tokens.", verdict)
    else:
        expect(verdict.startswith(f"First difference at token {at + 1}: "), f"{verdict} (expected token {at + 1})")
        marked = [page.evaluate("(s) => [...document.querySelectorAll(`#answer-${s} .text > *`)].findIndex((n) => n.matches('mark'))", side)
                  for side in ("left", "right")]
        expect(marked == [at if at < len(tokens_of) else -1 for tokens_of in ids], f"the marked tokens: {marked}")
    for side in ("left", "right"):
        expect(re.search(r"tokens · [\d.–]+ tokens/s · .* of KV read \(", text(page, f"#answer-{side} .hint")), f"the facts of the {side} answer")
    snap(page, "compare")
    verdict = run_comparison(page, keys, "dense", "dense", 8)
    expect(verdict.startswith("No difference in ") and not page.query_selector("mark"), "dense beside dense: " + verdict)
    return at


def errors(page, keys, answers):
    """What the server refuses is said, and the question is not lost."""
    def refused(status, body, headers={}):
        page.route("**/v1/chat/completions", lambda route: route.fulfill(
            status=status, headers={"Content-Type": "application/json", **headers}, body=json.dumps({"error": {"message": body}})))
        keys.replace("message", "Again?")
        keys.press("Enter")
        page.wait_for_selector("#chat-error:not([hidden])")
        page.unroute("**/v1/chat/completions")
        expect(page.input_value("#message") == "Again?", "the question is not lost")
        expect(len(page.query_selector_all("#log article")) == answers * 2, "nothing is left of a refused question")
        return text(page, "#chat-error")
    said = refused(429, "The queue is full.", {"Retry-After": "1"})
    expect(said.startswith("429: The queue is full.") and "in 1 s" in said, said)
    expect(refused(503, "The server is draining.").startswith("503: The server is draining."), "503")
    keys.replace("message", "x" * 5000 + " y" * 40000)  # by the server itself: longer than any context
    keys.press("Enter")
    until(page, "/^400: /.test(document.getElementById('chat-error').textContent)")
    snap(page, "error")


def stops(page, keys, answers):
    """Escape ends an answer, and the server its generation."""
    keys.replace("message", "Tell me everything.")
    page.eval_on_selector("#max-tokens", "(e) => { e.value = 30000; }")
    keys.press("Enter")
    until(page, "(n) => document.querySelectorAll('.assistant').length === n && document.querySelector('.writing .text')?.textContent", answers + 1)
    keys.press("Escape")
    until(page, "document.querySelector('#log article:last-child .meta').textContent")
    meta = text(page, "#log article:last-child .meta")
    expect(meta == "stopped", "Escape stops: " + meta)
    until(page, "document.getElementById('running').textContent.startsWith('0 ')", seconds=60)


def snap(page, name):
    if pictures:
        pictures.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=pictures / f"{name}.png", full_page=True)


def looks(page):
    """Light and dark, wide and narrow: nothing sticks out, everything can be read."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for width in (1280, 768, 360):
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_timeout(300)
            expect(page.evaluate("document.documentElement.scrollWidth") <= width, f"nothing sticks out at {width} pixels")
            ratio, where = page.evaluate(CONTRAST)
            expect(ratio >= 4.5, f"contrast {ratio:.2f} at {where} ({scheme}, {width})")
            snap(page, f"{scheme}-{width}")


def visit(browser, server, point):
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
    console, elsewhere = [], []
    page.on("console", lambda message: message.type in ("error", "warning") and console.append(message.text))
    page.on("pageerror", lambda error: console.append(str(error)))
    page.on("request", lambda request: request.url.startswith(server.url) or elsewhere.append(request.url))
    page.goto(server.url)
    keys = Keyboard(page)
    question = "Who wrote the list of what is in the store room, and when? " * 3
    answer = chat(page, keys, question.strip())
    microscope(page, keys, server, question.strip(), point, answer)
    at = compare(page, keys, server, point, 40)
    looks(page)
    page.set_viewport_size({"width": 1280, "height": 900})
    expect(console == [], f"no errors in the console: {console}")
    stops(page, keys, 1)
    expect(console == [], f"no errors in the console: {console}")
    errors(page, keys, 2)
    expect(elsewhere == [], f"nothing is fetched from elsewhere: {elsewhere}")
    page.close()
    return at


def open_browser(play):
    path = os.environ.get("POLAR_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    try:
        return play.chromium.launch(executable_path=path, args=["--no-sandbox"])
    except Exception as error:  # whatever keeps a browser from starting
        print("skipped: no Chromium starts:", str(error).splitlines()[0])
        sys.exit(77)


with tempfile.TemporaryDirectory() as scratch, sync_playwright() as play:
    browser = open_browser(play)
    folder = pathlib.Path(scratch)
    model, profile = os.environ.get("POLAR_PAGE_MODEL"), os.environ.get("POLAR_PAGE_PROFILE")
    if not model:
        model, layers, kv_heads = make_longer_model(folder / "model")
        profile = make_profile(folder / "profile", layers, kv_heads)
    point = json.loads((pathlib.Path(profile) / "profile.json").read_text())["points"][1]["name"]
    server = Server(model, profile)
    try:
        at = visit(browser, server, point)
    finally:
        browser.close()
        code = server.stop()
    expect(code == 0, f"the server ended with {code}")
    print("answers part at token", at + 1 if at >= 0 else "none")
finish(least=30)
