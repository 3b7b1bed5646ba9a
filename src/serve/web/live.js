// What the server is doing now: /polar/status about once a second.
import { get_json } from "/api.js";
import { percent } from "/format.js";

const kSeconds = 60;
const element = (id) => document.getElementById(id);
const rates = [];
let before = null;

function draw_spark() {
  const most = Math.max(...rates, 1);
  const points = rates.map((rate, i) => `${60 - rates.length + i + 1},${15.5 - (15 * rate) / most}`);
  element("spark").firstElementChild.setAttribute("points", points.join(" "));
}

/** Tokens per second and density between two looks; nothing read in between: the density so far. */
function show(now) {
  const seconds = before ? now.seconds - before.seconds : 0;
  const rate = seconds > 0 ? Math.max(0, now.output_tokens - before.output_tokens) / seconds : 0;
  rates.push(rate);
  if (rates.length > kSeconds) rates.shift();
  element("rate").textContent = rate >= 100 ? rate.toFixed(0) : rate.toFixed(1);
  element("running").textContent = `${now.running} / ${now.max_batch}`;
  element("waiting").textContent = now.waiting;
  element("kv").textContent = percent(now.pages ? now.pages_used / now.pages : 0);
  const fresh = before && now.kv_bytes_dense > before.kv_bytes_dense ? before : { kv_bytes_read: 0, kv_bytes_dense: 0 };
  const dense = now.kv_bytes_dense - fresh.kv_bytes_dense;
  element("density").textContent = dense > 0 ? percent((now.kv_bytes_read - fresh.kv_bytes_read) / dense) : "–";
  draw_spark();
}

function show_state(text, kind) {
  const state = element("state");
  if (state.textContent !== text) state.textContent = text;
  state.dataset.kind = kind;
}

/** Polls for ever; calls on_ready once, when the model is there. */
export async function watch(on_ready) {
  let ready = false;
  for (;;) {
    if (!document.hidden) {
      try {
        const now = await get_json("/polar/status");
        element("model").textContent = now.model;
        show_state(now.state, now.state);
        if (now.state !== "loading") {
          show(now);
          before = now;
          if (!ready) {
            await on_ready(now);
            ready = true;
          }
        }
      } catch (error) {
        show_state(error.status === 401 ? "needs an API key (Settings)" : error.message, "gone");
        before = null;
      }
    }
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}
