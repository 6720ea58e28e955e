// The page of a run: curves and log, which grow with its stream.
import { Curves } from "./charts.js";
import { onEvent } from "./live.js";
import { startLog } from "./log.js";

const root = document.getElementById("charts");
const tools = document.getElementById("chart-tools");
const curves = new Curves(root);
// What the stream brings before all older points are loaded.
let waiting = [];

// The state of the tools is in the URL, so that a curve can be shared as it is seen.
const url = new URL(location.href);
for (const field of tools.elements) {
  const given = url.searchParams.get(field.name);
  if (given === null) continue;
  if (field.type === "checkbox") field.checked = true;
  else field.value = given;
}
tools.hidden = false;
tools.addEventListener("input", () => {
  const values = Object.fromEntries(new FormData(tools));
  for (const name of ["smooth", "x", "log"]) {
    if (values[name] === undefined) url.searchParams.delete(name);
    else url.searchParams.set(name, values[name]);
  }
  history.replaceState(history.state, "", url);
  curves.draw(values);
});
tools.addEventListener("submit", (event) => event.preventDefault());

onEvent("points", (data) => {
  const points = JSON.parse(data);
  if (waiting) waiting.push(points);
  else {
    curves.add(points);
    curves.draw();
  }
});
startLog();

async function load() {
  curves.draw(Object.fromEntries(new FormData(tools)));
  for (let after = 0; after !== null; ) {
    try {
      const response = await fetch(`${root.dataset.points}?after=${after}`);
      if (!response.ok) throw new Error(response.status);
      const points = await response.json();
      curves.add(points);
      after = points.next;
      curves.draw();
    } catch {
      root.querySelector("p")?.replaceChildren(root.dataset.failed);
      await new Promise((resolve) => setTimeout(resolve, 3000));
    }
  }
  for (const points of waiting) curves.add(points);
  waiting = null;
  curves.isLoaded = true;
  curves.draw();
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => curves.rebuild());
load();
