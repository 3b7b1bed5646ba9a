// Starts the page: the panel at once, everything else when the model is there.
import { get_json } from "/api.js";
import { start_chat } from "/chat.js";
import { start_compare } from "/compare.js";
import { watch } from "/live.js";
import { Microscope } from "/microscope.js";

function fill_points(select, profile, chosen) {
  const names = profile.points.map((point) => point.name);
  if (profile.has_profile && select.id === "point") names.push("auto");
  select.replaceChildren(...names.map((name) => new Option(name, name, false, name === chosen)));
}

async function start(status) {
  const profile = await get_json("/polar/profile");
  const sparse = profile.points[1]?.name ?? "dense";
  for (const [id, name] of [["point", sparse], ["left", "dense"], ["right", sparse]])
    fill_points(document.getElementById(id), profile, name);
  const microscope = new Microscope(profile);
  start_chat(profile, status, microscope);
  start_compare(profile);
}

const key = document.getElementById("key");
key.value = sessionStorage.getItem("polar-key") ?? "";
key.addEventListener("input", () => sessionStorage.setItem("polar-key", key.value));

watch(start);
