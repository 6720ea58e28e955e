// The form of a new job: errors at their fields, the side that was changed last, and the draft over a reload.
const form = document.getElementById("job-form");
const csrf = document.querySelector('meta[name="csrf"]').content;
const place = new URL(location.href);
place.searchParams.delete("preflight");
const DRAFT = `tunesmith-draft ${place.pathname}${place.search}`;
const VOLATILE = ["csrf", "key", "do", "source"];
let submissions = 0;
let focused = null;
let opened = [];
let stages = countStages();

form.addEventListener("input", (event) => {
  form.elements.source.value = event.target.id === "json" ? "json" : "form";
  keep();
}, true);

// A check that was still waiting would take the place of the submission, whose response is then lost.
const isSubmission = (ctx) => ctx.request?.submitter?.name === "do" && ctx.request.submitter.value === "submit";
document.addEventListener("htmx:config:request", (event) => {
  if (isSubmission(event.detail.ctx)) submissions += 1;
  else if (submissions) event.preventDefault();
});
document.addEventListener("htmx:finally:request", ({ detail: { ctx } }) => {
  if (isSubmission(ctx)) submissions -= 1;
});

// Parts are replaced: what had the focus gets it again, and what was open stays open.
document.addEventListener("htmx:before:swap", () => {
  focused = document.activeElement?.id;
  opened = [...document.querySelectorAll("details.folded[open]")].map((each) => each.id);
});
document.addEventListener("htmx:after:swap", restoreView);

document.addEventListener("htmx:after:request", ({ detail: { ctx } }) => {
  // The job was submitted, so its draft is done; another redirect leads to the login and back.
  if (ctx.hx?.redirect?.startsWith("/jobs/job_")) sessionStorage.removeItem(DRAFT);
});

document.getElementById("discard").addEventListener("click", () => {
  sessionStorage.removeItem(DRAFT);
  location.reload();
});

function countStages() {
  return document.querySelectorAll("#fields fieldset").length;
}

// The menu of stages closes, and the view moves to the stage that was added.
form.addEventListener("click", ({ target }) => {
  const menu = target.closest(".menu-choice")?.closest("details");
  if (menu) setTimeout(() => (menu.open = false));
});

function restoreView() {
  for (const id of opened) {
    const details = document.getElementById(id);
    if (details) details.open = true;
  }
  const before = stages;
  stages = countStages();
  if (stages > before) focused = document.querySelector("#fields fieldset:last-of-type select")?.id;
  if (focused && document.activeElement?.id !== focused) document.getElementById(focused)?.focus();
  showErrors();
  if (form.elements.source.value === "form") keep();
}

function showErrors() {
  const errors = JSON.parse(document.getElementById("plan").dataset.fields);
  for (const shown of form.querySelectorAll("[data-error]")) {
    const message = errors[shown.dataset.error] ?? "";
    shown.textContent = message;
    document.getElementById(`f-${shown.dataset.error}`)?.setAttribute("aria-invalid", String(message !== ""));
  }
}

// A link to a field opens what hides it.
document.addEventListener("click", (event) => {
  const link = event.target.closest('#plan a[href^="#f-"]');
  const field = link && document.getElementById(link.getAttribute("href").slice(1));
  if (!field) return;
  event.preventDefault();
  const details = field.closest("details");
  if (details) details.open = true;
  field.focus();
});

function keep() {
  const entries = [...new FormData(form)].filter(([name]) => !VOLATILE.includes(name));
  sessionStorage.setItem(DRAFT, JSON.stringify([form.elements.source.value, entries]));
}

async function restore() {
  const kept = sessionStorage.getItem(DRAFT);
  if (kept === null || form.querySelector("button.primary[data-disabled]")) return;
  const [source, entries] = JSON.parse(kept);
  const shown = JSON.stringify([...new FormData(form)].filter(([name]) => !VOLATILE.includes(name)));
  if (JSON.stringify(entries) === shown) return;
  const body = new URLSearchParams([...entries, ["source", source], ["key", form.elements.key.value], ["render", "1"]]);
  const headers = { "X-CSRF-Token": csrf, "HX-Request": "true", "HX-Current-URL": location.href };
  const response = await fetch("/jobs/new", { method: "POST", headers, body });
  if (!response.ok) return;
  form.elements.source.value = source;
  if (source === "json") document.getElementById("json").value = new Map(entries).get("json");
  await htmx.swap({ text: await response.text(), sourceElement: form, target: form, swap: "none" });
  document.getElementById("restored").hidden = false;
  showErrors();
}

restore();
