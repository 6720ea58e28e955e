// The chat: sends one message to both sides, and shows what each of them streams. Everything else is HTML.
const composer = document.getElementById("composer");
const turns = document.getElementById("turns");
const settings = document.getElementById("chat-settings");
const message = document.getElementById("message");
const stop = document.getElementById("stop");
const send = document.getElementById("send");
const csrf = document.querySelector('meta[name="csrf"]').content;
const NUMBERS = ["temperature", "seed", "max_tokens"];

const history = { a: [], b: [] };
const rows = new Map(); // The preference row of each turn that was rated.
let running = null;

const fill = (text, values) => text.replace(/\{(\w+)\}/g, (_, name) => values[name]);

function options() {
  const fields = new FormData(settings);
  const chosen = {};
  for (const name of NUMBERS) if (fields.get(name)) chosen[name] = Number(fields.get(name));
  return { system: fields.get("system"), chosen };
}

/** The state of the form is in the URL. */
function keepState() {
  // No second model is a choice: without `b`, it is the base of the first one.
  const query = new URLSearchParams([...new FormData(settings)].filter(([name, value]) => value !== "" || name === "b"));
  window.history.replaceState(null, "", `/chat?${query}`);
}

async function ask(side, model, answer, signal) {
  const text = answer.querySelector(".answer-text");
  const note = answer.querySelector(".answer-note");
  const { system, chosen } = options();
  const messages = system ? [{ role: "system", content: system }, ...history[side]] : [...history[side]];
  const body = { model, messages, ...chosen, stream: true, store: true, stream_options: { include_usage: true } };
  const started = performance.now();
  const result = { id: "", content: "", messages };
  note.textContent = turns.dataset.waiting;
  try {
    const response = await fetch("/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-CSRF-Token": csrf, Accept: "text/event-stream" },
      body: JSON.stringify(body),
      signal,
    });
    if (response.status === 401) location.reload();
    if (!response.ok) return fail(answer, await explain(response));
    let first = 0;
    let usage = null;
    let reason = null;
    for await (const chunk of readEvents(response.body)) {
      if (chunk.error) return fail(answer, chunk.error);
      result.id ||= chunk.id ?? "";
      usage = chunk.usage ?? usage;
      const choice = chunk.choices?.[0];
      reason = choice?.finish_reason ?? reason;
      if (!choice?.delta?.content) continue;
      if (!first) note.textContent = "";
      first ||= performance.now();
      result.content += choice.delta.content;
      text.textContent = result.content;
      follow();
    }
    const seconds = (performance.now() - started) / 1000;
    const rate = usage ? usage.completion_tokens / Math.max(0.001, seconds) : 0;
    const shown = usage ? turns.dataset.usage : turns.dataset.seconds;
    note.textContent = fill(shown, { tokens: usage?.completion_tokens, seconds: seconds.toFixed(1), rate: rate.toFixed(1) });
    if (reason === "length") note.textContent += ` · ${turns.dataset.length}`;
    result.complete = true;
  } catch (error) {
    if (error.name !== "AbortError") return fail(answer, { message: result.content ? turns.dataset.cut : turns.dataset.lost });
    note.textContent = turns.dataset.stopped;
  } finally {
    answer.setAttribute("aria-busy", "false");
  }
  return result.content ? result : null;
}

async function explain(response) {
  const refused = { message: `${turns.dataset.refused} ${response.status}` };
  if (!response.headers.get("content-type")?.includes("json")) return refused;
  return (await response.json()).error ?? refused;
}

function fail(answer, error) {
  const box = document.createElement("div");
  box.className = "box error";
  box.setAttribute("role", "alert");
  const text = document.createElement("p");
  text.textContent = error.message;
  box.append(text);
  if (error.code) {
    const code = document.createElement("code");
    code.textContent = error.code;
    box.append(code);
  }
  answer.querySelector(".answer-note").textContent = "";
  answer.append(box);
  return null;
}

async function* readEvents(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new TypeError("the stream has ended early");
    const lines = (waiting + value).split("\n");
    waiting = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

/** Keeps the newest text in view, unless the reader has scrolled up. */
function follow() {
  const end = composer.getBoundingClientRect();
  if (end.top < innerHeight + 240) composer.scrollIntoView({ block: "end" });
}

async function exchange(content) {
  const turn = document.getElementById("turn").content.cloneNode(true).firstElementChild;
  turn.querySelector(".turn-message").textContent = content;
  turns.querySelector(".turns-hint")?.remove();
  turns.append(turn);
  document.getElementById("clear").hidden = false;
  running = new AbortController();
  stop.hidden = false;
  send.hidden = true;
  follow();
  const sides = [...turn.querySelectorAll(".chat-answer")];
  const results = await Promise.all(
    sides.map((answer) => {
      const side = answer.dataset.side;
      history[side].push({ role: "user", content });
      return ask(side, composer.dataset[side], answer, running.signal);
    }),
  );
  results.forEach((result, index) => {
    const known = history[sides[index].dataset.side];
    // A side without an answer does not get the message again with the next one.
    if (result) known.push({ role: "assistant", content: result.content });
    else known.pop();
  });
  running = null;
  stop.hidden = true;
  send.hidden = false;
  if (results.length === 2 && results.every((result) => result?.complete)) offerRating(turn, results);
  follow();
}

function offerRating(turn, [first, second]) {
  const rating = turn.querySelector(".rating");
  rating.hidden = false;
  rating.addEventListener("click", async ({ target }) => {
    const value = target.dataset.rating;
    if (!value) return;
    for (const button of rating.querySelectorAll("button")) button.setAttribute("aria-pressed", String(button === target));
    const [better, worse] = value === "first" ? [first, second] : [second, first];
    rows.delete(turn);
    if (value !== "equal" && better.content !== worse.content) {
      const completion = (answer) => [{ role: "assistant", content: answer.content }];
      rows.set(turn, { prompt: better.messages, chosen: completion(better), rejected: completion(worse) });
    }
    offerDownload();
    const note = rating.querySelector(".rating-note");
    const kept = value === "equal" ? turns.dataset.equal : turns.dataset.kept;
    try {
      const response = await fetch("/chat/ratings", {
        method: "POST",
        headers: { "X-CSRF-Token": csrf },
        body: new URLSearchParams({ first: first.id, second: second.id, rating: value }),
      });
      if (!response.ok) throw new Error(response.status);
      note.textContent = (await response.json()).stored ? turns.dataset.stored : kept;
    } catch (error) {
      note.textContent = `${turns.dataset.unrated} ${error.message}`;
    }
  });
}

function offerDownload() {
  const link = document.getElementById("preferences");
  const lines = [...rows.values()].map((row) => `${JSON.stringify(row)}\n`);
  if (link.href) URL.revokeObjectURL(link.href);
  link.href = URL.createObjectURL(new Blob(lines, { type: "application/jsonl" }));
  link.textContent = fill(link.dataset.label, { n: lines.length });
  link.hidden = !lines.length;
}

if (composer) {
  composer.addEventListener("submit", (event) => {
    event.preventDefault();
    const content = message.value.trim();
    if (!content || running || !settings.reportValidity()) return;
    message.value = "";
    exchange(content);
  });
  message.addEventListener("keydown", (event) => {
    // Enter also ends the composition of a Korean syllable.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    composer.requestSubmit();
  });
  stop.addEventListener("click", () => {
    running?.abort();
    message.focus();
  });
  document.getElementById("clear").addEventListener("click", () => location.reload());
  settings.addEventListener("change", ({ target }) => {
    keepState();
    // Another model begins another conversation.
    if (target.matches("select")) location.reload();
  });
}
