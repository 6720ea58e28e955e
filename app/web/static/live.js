// The stream of a page: parts of it arrive as they change. One stream per page, and none while it is hidden:
// browsers allow six connections to a host, and a stream holds one.
const SILENCE = 40_000; // The service sends something every 15 seconds; after sleep, a connection may be dead.
const DELAYS = [500, 1000, 2000, 5000];

const listeners = new Map();
let source = null;
let address = null;
let lastId = null;
let attempt = 0;
let silence = 0;
let retry = 0;

/** Calls `listener` with the data and the id of every event of this name. */
export function onEvent(name, listener) {
  listeners.set(name, listener);
  source?.addEventListener(name, handle);
}

export function startLive() {
  onEvent("parts", (html) => swap(html));
  onEvent("hello", (assets) => {
    // The service has been updated: its pages no longer fit these scripts.
    if (assets !== document.documentElement.dataset.assets) location.reload();
  });
  onEvent("away", () => show("away"));
  onEvent("back", () => show("live"));
  onEvent("ping", () => {});
  onEvent("position", () => {});
  lastId = element()?.dataset.after ?? null;
  onEvent("gone", () => location.reload());
  onEvent("logged-out", () => location.reload());
  document.addEventListener("visibilitychange", () => (document.hidden ? pause() : open()));
  addEventListener("pagehide", close);
  addEventListener("pageshow", (event) => event.persisted && open());
  addEventListener("online", open);
  document.addEventListener("htmx:after:swap", () => element()?.dataset.stream !== address && open());
  open();
}

const element = () => document.getElementById("live");

function open() {
  close();
  const live = element();
  address = live?.dataset.stream;
  if (!address || document.hidden) return;
  const url = new URL(address, location.href);
  url.searchParams.set("version", live.dataset.version ?? "");
  if (lastId !== null) url.searchParams.set("after_event", lastId);
  source = new EventSource(url);
  source.addEventListener("open", () => {
    attempt = 0;
    show("live");
    watch();
  });
  source.addEventListener("error", lose);
  for (const name of listeners.keys()) source.addEventListener(name, handle);
}

function handle(event) {
  watch();
  if (event.lastEventId) lastId = event.lastEventId;
  listeners.get(event.type)(event.data, event.lastEventId);
}

function close() {
  clearTimeout(silence);
  clearTimeout(retry);
  source?.close();
  source = null;
}

function pause() {
  close();
  show("paused");
}

function watch() {
  clearTimeout(silence);
  silence = setTimeout(open, SILENCE);
}

async function lose() {
  show("lost");
  // The browser tries again by itself after a broken connection, but not after an error of the service.
  if (source?.readyState !== EventSource.CLOSED) return;
  close();
  retry = setTimeout(reopen, DELAYS[Math.min(attempt++, DELAYS.length - 1)]);
}

async function reopen() {
  try {
    const response = await fetch(location.href, { method: "HEAD", cache: "no-store" });
    // The login has ended, or what the page shows was deleted: the service explains it.
    if (response.redirected || response.status === 404) return location.reload();
  } catch {
    // It is still away.
  }
  if (!document.hidden) open();
}

function swap(html) {
  const live = element();
  return htmx.swap({ text: html, sourceElement: live, target: live, swap: "none" });
}

function show(state) {
  const shown = document.getElementById("connection");
  shown.dataset.state = state;
  shown.textContent = shown.dataset[state] ?? "";
}
