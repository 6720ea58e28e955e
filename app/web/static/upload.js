// The upload with progress: files are chosen or dropped anywhere on the page, and sent one after another.
import { notify } from "./app.js";

const form = document.getElementById("upload");
const box = document.getElementById("upload-progress");
const bar = box.querySelector("progress");
const text = box.querySelector("output");
const csrf = document.querySelector('meta[name="csrf"]').content;
let request = null;

form.addEventListener("submit", (event) => {
  event.preventDefault();
  sendAll([...form.elements.file.files]);
});
document.getElementById("upload-cancel").addEventListener("click", () => request?.abort());
document.addEventListener("dragover", (event) => {
  if (![...event.dataTransfer.types].includes("Files")) return;
  event.preventDefault();
  form.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => event.relatedTarget ?? form.classList.remove("dropping"));
document.addEventListener("drop", (event) => {
  form.classList.remove("dropping");
  if (!event.dataTransfer.files.length) return;
  event.preventDefault();
  const button = form.querySelector("button.primary");
  if (button.matches("[data-disabled]")) notify(button.title);
  else sendAll([...event.dataTransfer.files]);
});

async function sendAll(files) {
  if (!files.length) return notify(form.dataset.choose);
  if (request) return;
  let page = null;
  for (const file of files) {
    page = await send(file, files.length > 1);
    if (page === null) break;
  }
  request = null;
  box.hidden = true;
  if (page !== null) location.assign(files.length > 1 ? "/datasets" : page);
}

/** Resolves to the page of the dataset, or to null if it was refused or cancelled. */
function send(file, isOneOfMany) {
  const body = new FormData(form);
  body.delete("file");
  if (isOneOfMany) body.delete("name");
  body.append("file", file);
  box.hidden = false;
  show("sending", file, 0);
  request = new XMLHttpRequest();
  request.open("POST", form.action);
  request.setRequestHeader("X-CSRF-Token", csrf);
  request.setRequestHeader("HX-Request", "true");
  request.setRequestHeader("HX-Current-URL", location.href);
  request.upload.addEventListener("progress", (event) => {
    const share = event.total ? event.loaded / event.total : 0;
    show(share < 1 ? "sending" : "checking", file, share);
  });
  return new Promise((resolve) => {
    request.addEventListener("abort", () => resolve(null));
    request.addEventListener("error", () => {
      notify(form.dataset.lost);
      resolve(null);
    });
    request.addEventListener("load", ({ target }) => {
      const page = target.getResponseHeader("HX-Redirect");
      if (page === null) htmx.swap({ text: target.responseText, sourceElement: form, target: form, swap: "none" });
      resolve(page);
    });
    request.send(body);
  });
}

function show(name, file, share) {
  // Without a value, the bar shows that something happens.
  if (name === "checking") bar.removeAttribute("value");
  else bar.value = share;
  text.textContent = form.dataset[name]
    .replace("{name}", file.name)
    .replace("{percent}", Math.floor(share * 100))
    .replace("{size}", `${(file.size / 2 ** 20).toFixed(1)} MiB`);
}
