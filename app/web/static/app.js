// The entry of every page: live updates, times, copies and menus. Pages work without it, except for these.
import { startLive } from "./live.js";
import { startTimes } from "./times.js";

const csrf = document.querySelector('meta[name="csrf"]').content;

document.addEventListener("htmx:config:request", ({ detail: { ctx } }) => {
  ctx.request.headers["X-CSRF-Token"] = csrf;
  // An empty field is no filter, so it does not belong in the URL.
  if (ctx.request.method !== "GET" || !ctx.request.body) return;
  for (const [name, value] of [...ctx.request.body]) if (value === "") ctx.request.body.delete(name);
});

// An error of a request without a response: the service is away.
document.addEventListener("htmx:error", ({ detail }) => {
  if (detail.ctx) notify(document.getElementById("connection").dataset.lost);
});

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button");
  // A button with a reason stays focusable, so that everyone can read the reason.
  if (button?.matches("[data-disabled]")) {
    event.preventDefault();
    event.stopImmediatePropagation();
    notify(button.title);
  }
  if (button?.dataset.copy) {
    await copy(document.getElementById(button.dataset.copy).textContent);
    const label = button.querySelector("span");
    const before = label.textContent;
    label.textContent = button.dataset.done;
    setTimeout(() => (label.textContent = before), 1500);
  }
  for (const menu of document.querySelectorAll("details.menu[open]")) {
    if (!menu.contains(event.target)) menu.open = false;
  }
}, true);

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  const menu = event.target.closest?.("details.menu[open]");
  if (!menu) return;
  menu.open = false;
  menu.querySelector("summary").focus();
});

export function notify(text) {
  const box = document.createElement("p");
  box.className = "box notice";
  box.textContent = text;
  document.getElementById("notices").replaceChildren(box);
  setTimeout(() => box.remove(), 8000);
}

async function copy(text) {
  try {
    return await navigator.clipboard.writeText(text);
  } catch {
    // Without TLS there is no clipboard, or it is not allowed; the old way still works.
  }
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

// A narrow screen shows a part of the navigation: that of this page.
document.querySelector(".top nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
startTimes();
startLive();
