// The chat: one stream at a time, its history kept in the page alone.
import { question, show_error, stream } from "/api.js";
import { bytes, percent, plural, rate } from "/format.js";

const element = (id) => document.getElementById(id);

function bubble(role) {
  const article = document.createElement("article");
  article.className = role;
  article.setAttribute("aria-label", role === "user" ? "You" : "Model");
  const text = document.createElement("p");
  text.className = "text";
  const meta = document.createElement("p");
  meta.className = "meta";
  article.append(text, meta);
  element("chat-hint").hidden = true;
  element("log").append(article);
  return { article, text, meta };
}

function follow() {
  const log = element("log");
  log.scrollTop = log.scrollHeight;
}

/** What stands under an answer. */
function facts(usage) {
  const { kv_bytes_read: read, kv_bytes_dense: dense, kv_density: density, point } = usage.polar;
  const parts = [plural(usage.completion_tokens, "token"), rate(usage), point];
  if (dense > 0) parts.push(`${percent(density)} of the KV bytes read`);
  if (dense > read) parts.push(`${bytes(dense - read)} saved`);
  return parts.join(" · ");
}

export function start_chat(profile, status, microscope) {
  const form = element("chat-form"), message = element("message");
  const history = [];
  let stopper = null;

  function busy(is_busy) {
    element("stop").hidden = !is_busy;
    element("send").hidden = is_busy;
    element("send").disabled = is_busy;
  }

  function body() {
    const system = element("system").value.trim();
    const messages = system ? [{ role: "system", content: system }, ...history] : history;
    const { path, fields } = question(profile, messages);
    return [path, {
      ...fields,
      temperature: Number(element("temperature").value),
      max_tokens: Number(element("max-tokens").value),
      polar: { point: element("point").value, trace: true },
    }];
  }

  async function answer() {
    const { article, text, meta } = bubble("assistant");
    let finish = null, usage = null;
    article.classList.add("writing");
    microscope.begin(element("point").value);
    stopper = new AbortController();
    busy(true);
    try {
      await stream(...body(), stopper.signal, (event) => {
        for (const choice of event.choices) {
          const piece = choice.delta ? choice.delta.content : choice.text;
          if (piece) text.append(piece);
          finish = choice.finish_reason ?? finish;
          if (choice.polar) microscope.add(choice.polar);
        }
        usage = event.usage ?? usage;
        follow();
      });
      meta.textContent = facts(usage) + (finish === "length" ? " · cut at its most tokens" : "");
      microscope.end(usage);
      element("chat-status").textContent = `The answer is complete: ${plural(usage.completion_tokens, "token")}.`;
    } catch (error) {
      if (error.name === "AbortError") {
        meta.textContent = "stopped";
        element("chat-status").textContent = "Stopped.";
      } else {
        meta.textContent = text.textContent ? "broken off" : "";
        show_error(element("chat-error"), error);
      }
    }
    article.classList.remove("writing");
    stopper = null;
    busy(false);
    if (text.textContent) {
      history.push({ role: "assistant", content: text.textContent });
    } else if (finish === null) {
      // Nothing came: the question goes back to where it was written.
      article.remove();
      const asked = history.pop();
      element("log").lastElementChild.remove();
      if (!message.value) message.value = asked.content;
    }
    follow();
    if (document.activeElement === document.body) message.focus();
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const content = message.value.trim();
    if (stopper || !content || !form.reportValidity()) return;
    show_error(element("chat-error"), null);
    message.value = "";
    bubble("user").text.textContent = content;
    history.push({ role: "user", content });
    follow();
    answer();
  });
  message.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") stopper?.abort();
  });
  element("stop").addEventListener("click", () => {
    stopper?.abort();
    message.focus();
  });
  element("clear").addEventListener("click", () => {
    stopper?.abort();
    history.length = 0;
    for (const article of element("log").querySelectorAll("article")) article.remove();
    element("chat-hint").hidden = false;
    show_error(element("chat-error"), null);
    microscope.begin(element("point").value);
    message.focus();
  });
  element("point").addEventListener("change", () => {
    if (!stopper) microscope.begin(element("point").value);
  });
  element("max-tokens").max = status.max_model_len;
  element("max-tokens").value = Math.min(256, status.max_model_len);
  if (!profile.has_chat_template)
    element("chat-hint").textContent = "This model has no chat template: it goes on with your text.";
  microscope.begin(element("point").value);
  busy(false);
}
