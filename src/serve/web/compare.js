// The same prompt at two operating points, and where the answers part.
import { question, show_error, stream } from "/api.js";
import { bytes, percent, plural, rate } from "/format.js";

const element = (id) => document.getElementById(id);

/** A text that is long enough to have something to skip, with a fact to find in it. */
function sample() {
  const things = ["lantern", "map", "violin", "compass", "kettle", "letter", "clock", "mirror"];
  const colours = ["blue", "green", "black", "silver", "red", "white"];
  const lines = [];
  for (let i = 1; i <= 60; ++i)
    lines.push(`Shelf ${i} holds the ${colours[(i * 5) % 6]} ${things[(i * 3) % 8]} that came in crate ${(i * 37) % 101}.`);
  return `Here is the list of a store room.\n${lines.join("\n")}\nIn which crate did the thing on shelf 17 come?`;
}

/** The bytes of a token of /v1/completions, which writes parts of characters as bytes:\x... */
function bytes_of(text) {
  if (!text.startsWith("bytes:\\x")) return [...new TextEncoder().encode(text)];
  return text.slice(6).match(/[0-9a-f]{2}/g).map((hex) => parseInt(hex, 16));
}

function tokens_of(choice) {
  if (!choice.logprobs) return [];
  if (choice.logprobs.content) return choice.logprobs.content.map((token) => token.bytes);
  return choice.logprobs.tokens.map(bytes_of);
}

const same = (a, b) => a !== undefined && b !== undefined && a.length === b.length && a.every((byte, i) => byte === b[i]);

function first_difference(left, right) {
  const both = Math.min(left.length, right.length);
  for (let i = 0; i < both; ++i) {
    if (!same(left[i], right[i])) return i;
  }
  return left.length === right.length ? -1 : both;
}

function span(text, class_name) {
  const node = document.createElement(class_name === "first" ? "mark" : "span");
  node.textContent = text;
  if (class_name) node.className = class_name;
  return node;
}

/** Tokens as text; the one at `mark` is marked. The token that ends a text is shown as such. */
function draw(answer, mark) {
  const decoder = new TextDecoder();
  const pieces = [];
  answer.tokens.forEach((token, i) => {
    const ends = answer.finish === "stop" && i === answer.tokens.length - 1;
    let text = ends ? "end" : decoder.decode(new Uint8Array(token), { stream: true });
    if (i === mark && text.trim() === "") text = text.replace("\n", "↵\n").replace(/^ +$/, "␣") || "…";
    pieces.push(span(text, i === mark ? "first" : mark >= 0 && i > mark ? "after" : ""));
    if (ends) pieces.at(-1).classList.add("end");
  });
  answer.article.querySelector(".text").replaceChildren(...pieces);
}

function facts(answer) {
  const { usage } = answer;
  const { kv_bytes_read: read, kv_bytes_dense: dense } = usage.polar;
  return [plural(usage.completion_tokens, "token"), rate(usage),
    `${bytes(read)} of KV read${dense > 0 ? ` (${percent(read / dense)})` : ""}`].join(" · ");
}

function token_text(answer, i) {
  const token = answer.tokens[i];
  if (token === undefined) return "nothing more";
  if (answer.finish === "stop" && i === answer.tokens.length - 1) return "the end";
  return `“${new TextDecoder().decode(new Uint8Array(token))}”`;
}

function verdict(left, right) {
  const at = first_difference(left.tokens, right.tokens);
  if (at < 0) return [at, `No difference in ${plural(left.tokens.length, "token")}.`];
  return [at, `First difference at token ${at + 1}: ${left.point} has ${token_text(left, at)}, ` +
    `${right.point} has ${token_text(right, at)}. Before it ${at === 1 ? "1 token is" : `${at} tokens are`} the same.`];
}

export function start_compare(profile) {
  const form = element("compare-form");
  let stopper = null;

  async function run(side, point, prompt) {
    const answer = { article: element(`answer-${side}`), point, tokens: [], finish: null, usage: null };
    answer.article.querySelector("h3").textContent = point;
    const { path, fields } = question(profile, [{ role: "user", content: prompt }]);
    // Not traced: on a GPU a trace costs time, and these are timed.
    const body = {
      ...fields, temperature: 0, max_tokens: Number(element("compare-tokens").value), polar: { point },
      logprobs: profile.has_chat_template ? true : 0,
    };
    await stream(path, body, stopper.signal, (event) => {
      for (const choice of event.choices) {
        answer.tokens.push(...tokens_of(choice));
        answer.finish = choice.finish_reason ?? answer.finish;
      }
      answer.usage = event.usage ?? answer.usage;
      draw(answer, -1);
    });
    answer.article.querySelector(".hint").textContent = facts(answer);
    return answer;
  }

  function busy(is_busy) {
    element("compare-stop").hidden = !is_busy;
    element("compare-run").hidden = is_busy;
  }

  async function compare(prompt) {
    stopper = new AbortController();
    busy(true);
    show_error(element("compare-error"), null);
    for (const side of ["left", "right"]) {
      for (const part of element(`answer-${side}`).children) part.replaceChildren();
    }
    element("verdict").textContent = "Running …";
    try {
      const left = await run("left", element("left").value, prompt);
      const right = await run("right", element("right").value, prompt);
      const [at, text] = verdict(left, right);
      draw(left, at);
      draw(right, at);
      element("verdict").textContent = text;
    } catch (error) {
      element("verdict").textContent = error.name === "AbortError" ? "Stopped." : "";
      if (error.name !== "AbortError") show_error(element("compare-error"), error);
    }
    stopper = null;
    busy(false);
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const prompt = element("compare-prompt").value.trim();
    if (!stopper && prompt && form.reportValidity()) compare(prompt);
  });
  element("sample").addEventListener("click", () => (element("compare-prompt").value = sample()));
  element("compare-stop").addEventListener("click", () => stopper?.abort());
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") stopper?.abort();
  });
}
