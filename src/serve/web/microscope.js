// The microscope: what each unit (layer, KV head) read for the tokens just produced.
import { bytes, percent, plural, whole } from "/format.js";

const kKinds = ["full", "pages", "routed", "window", "none"];
const kMeaning = {
  full: "every page",
  pages: "best pages",
  routed: "all or window",
  window: "window",
  none: "nothing",
};
const element = (id) => document.getElementById(id);
const sum = (values) => values.reduce((a, b) => a + b, 0);

function made(name, text, class_name) {
  const node = document.createElement(name);
  node.textContent = text ?? "";
  if (class_name) node.className = class_name;
  return node;
}

export class Microscope {
  constructor(profile) {
    this.profile = profile;
    this.cells = [];
    this.cursor = -1;
    this.point = profile.points[0];
    this.build();
    this.clear();
    for (const choice of document.querySelectorAll("input[name=span]"))
      choice.addEventListener("change", () => this.draw());
  }

  /** A new answer at an operating point ("auto" until the server says which it took). */
  begin(point_name) {
    this.point = this.profile.points.find((point) => point.name === point_name) ?? this.profile.points[0];
    this.clear();
  }

  clear() {
    this.newest = null;
    this.all = null;
    element("saved").textContent = "";
    this.draw();
    this.promise();
  }

  /** The server took this point: for "auto" it is news. */
  took(name) {
    const point = this.profile.points.find((candidate) => candidate.name === name);
    if (!point || point === this.point) return;
    this.point = point;
    this.draw();
    this.promise();
  }

  /** What the server traced: the pages that the rows since the last call read. */
  add({ point, trace }) {
    this.took(point);
    if (!trace.rows) return;
    this.newest = trace;
    if (this.all === null) {
      this.all = structuredClone(trace);
    } else {
      this.all.rows += trace.rows;
      trace.pages_dense.forEach((pages, layer) => (this.all.pages_dense[layer] += pages));
      trace.pages_read.forEach((heads, layer) => heads.forEach((pages, head) => (this.all.pages_read[layer][head] += pages)));
    }
    this.draw();
  }

  /** The answer is there: the server's own count of its bytes. */
  end(usage) {
    const { kv_bytes_read: read, kv_bytes_dense: dense } = usage.polar;
    element("saved").textContent = dense === 0 ? "The answer was over before a token was decoded."
      : read < dense ? `The answer read ${bytes(read)} of the cache; dense would have read ${bytes(dense)}: ${bytes(dense - read)} saved.`
      : `The answer read ${bytes(read)} of the cache, what dense reads.`;
  }

  kind(layer, head) {
    return this.point.budget[layer][head];
  }

  build() {
    const { layers, kv_heads } = this.profile;
    const map = element("map");
    map.style.setProperty("--layers", layers);
    map.style.setProperty("--heads", kv_heads);
    for (let head = 0; head < kv_heads; ++head) {
      for (let layer = 0; layer < layers; ++layer) {
        const cell = document.createElement("i");
        cell.append(document.createElement("b"));
        this.cells.push(cell);
        map.append(cell);
      }
    }
    map.addEventListener("pointerover", (event) => this.look(this.cells.indexOf(event.target.closest("i"))));
    map.addEventListener("keydown", (event) => this.move(event));
    map.addEventListener("blur", () => this.look(-1));
  }

  move(event) {
    const { layers } = this.profile;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -layers, ArrowDown: layers }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const next = this.cursor < 0 ? 0 : this.cursor + step;
    if (Math.abs(step) === 1 && this.cursor >= 0 && Math.floor(next / layers) !== Math.floor(this.cursor / layers)) return;
    if (next >= 0 && next < this.cells.length) this.look(next);
  }

  look(index) {
    this.cells[this.cursor]?.classList.remove("cursor");
    this.cursor = index;
    this.cells[index]?.classList.add("cursor");
    this.describe();
  }

  describe() {
    if (this.cursor < 0) {
      element("map-cell").textContent = "Point at a unit, or move with the arrow keys.";
      return;
    }
    const { layers } = this.profile;
    const layer = this.cursor % layers, head = Math.floor(this.cursor / layers);
    const trace = this.shown();
    let text = `Layer ${layer}, KV head ${head}: ${kMeaning[this.kind(layer, head)]}`;
    if (trace) {
      const read = trace.pages_read[layer][head], dense = trace.pages_dense[layer];
      text += `; read ${whole(read)} of ${plural(dense, "page")} (${percent(dense ? read / dense : 0)}).`;
    }
    element("map-cell").textContent = text;
  }

  shown() {
    return document.querySelector("input[name=span]:checked").value === "all" ? this.all : this.newest;
  }

  draw() {
    const { layers, kv_heads } = this.profile;
    const trace = this.shown();
    const rows = Object.fromEntries(kKinds.map((kind) => [kind, { units: 0, read: 0, dense: 0 }]));
    this.cells.forEach((cell, index) => {
      const layer = index % layers, head = Math.floor(index / layers);
      const kind = this.kind(layer, head);
      const read = trace?.pages_read[layer][head] ?? 0, dense = trace?.pages_dense[layer] ?? 0;
      cell.dataset.kind = kind;
      cell.style.setProperty("--share", dense ? (read / dense).toFixed(3) : 0);
      rows[kind].units += 1;
      rows[kind].read += read;
      rows[kind].dense += dense;
    });
    this.table(rows, trace !== null);
    this.summary(trace, kv_heads);
    this.describe();
  }

  table(rows, traced) {
    element("kinds").replaceChildren(...kKinds.filter((kind) => rows[kind].units).map((kind) => {
      const row = document.createElement("tr");
      const name = made("th");
      name.scope = "row";
      const swatch = made("span", "", "swatch");
      swatch.dataset.kind = kind;
      name.append(swatch, kMeaning[kind]);
      const { units, read, dense } = rows[kind];
      row.append(name, made("td", whole(units)), made("td", traced ? whole(read) : "–"),
        made("td", traced ? whole(dense - read) : "–"));
      return row;
    }));
  }

  summary(trace, kv_heads) {
    const text = element("map-summary");
    if (trace === null) {
      text.textContent = `Nothing was read yet. ${plural(this.profile.layers, "layer")} × ${plural(kv_heads, "KV head")}.`;
    } else {
      const read = sum(trace.pages_read.map(sum)), dense = sum(trace.pages_dense) * kv_heads;
      const short = read === dense && this.point.name !== "dense" ? " Nothing to skip yet: the window holds the whole text." : "";
      text.textContent = `${trace === this.all ? plural(trace.rows, "token") : "The newest token"} read ` +
        `${percent(read / dense)} of the pages: ${whole(read)} of ${whole(dense)}.${short}`;
    }
    element("map").setAttribute("aria-label", `Layers by KV heads. ${text.textContent}`);
  }

  promise() {
    const { quality, name, sink, recent } = this.point;
    const { context_min: least, context_max: most, page_tokens: page, has_profile } = this.profile;
    const unknown = "not measured";
    const entries = [["point", name]];
    if (name === "dense") {
      entries.push(["quality", has_profile ? "what the others are measured against" : "the model's own: no profile is loaded"]);
    } else {
      entries.push(
        ["window", `the first ${plural(sink * page, "token")} and the newest ${recent * page}`],
        ["perplexity", quality.perplexity_ratio ? `× ${quality.perplexity_ratio.toFixed(4)}` : unknown],
        ["same next token", quality.agreement ? percent(quality.agreement) : unknown],
        ["KV bytes", quality.kv_density === null ? unknown : `${percent(quality.kv_density)} of dense`],
        ["speed", "not promised; side by side measures it here"],
        ["measured on", quality.text || unknown]);
      if (most) entries.push(["at contexts of", `${whole(least)} to ${whole(most)} tokens`]);
    }
    element("promise").replaceChildren(...entries.map(([term, value]) => {
      const pair = document.createElement("div");
      pair.append(made("dt", term), made("dd", value));
      return pair;
    }));
  }
}
