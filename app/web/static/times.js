// Times in the reader's zone: how long ago with the full time as a title, and durations that count up.
const language = document.documentElement.lang;
const relative = new Intl.RelativeTimeFormat(language, { numeric: "auto", style: "short" });
const full = new Intl.DateTimeFormat(language, { dateStyle: "medium", timeStyle: "long" });
const clock = new Intl.DateTimeFormat(language, { timeStyle: "medium" });
const day = new Intl.DateTimeFormat(language, { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" });
const UNITS = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];
// The browser's clock may be wrong; the page has the time of the service.
const page = document.documentElement.dataset;
const offset = page.now ? Date.parse(page.now) - Date.now() : 0;

export const now = () => Date.now() + offset;

export function startTimes() {
  update();
  setInterval(update, 1000);
  document.addEventListener("htmx:after:swap", update);
}

function update() {
  for (const element of document.querySelectorAll("time[data-time]")) {
    const time = Date.parse(element.dateTime);
    const text = element.dataset.time === "clock" ? clock.format(time) : describe(time);
    if (element.textContent !== text) element.textContent = text;
    if (!element.title) element.title = full.format(time);
  }
  for (const element of document.querySelectorAll("time[data-since]")) {
    const text = duration((now() - Date.parse(element.dataset.since)) / 1000);
    if (element.textContent !== text) element.textContent = text;
  }
}

function describe(time) {
  const seconds = (time - now()) / 1000;
  if (Math.abs(seconds) > 7 * 86400) return day.format(time);
  if (Math.abs(seconds) < 10) return relative.format(0, "second");
  const [unit, size] = UNITS.find(([, size]) => Math.abs(seconds) >= size) ?? UNITS[3];
  // Seconds in tens: a column whose values change every second is a distraction.
  const value = Math.trunc(seconds / size);
  return relative.format(unit === "second" ? Math.trunc(value / 10) * 10 : value, unit);
}

export function duration(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const [d, h, m, s] = [whole / 86400, (whole / 3600) % 24, (whole / 60) % 60, whole % 60].map(Math.floor);
  const two = (value) => String(value).padStart(2, "0");
  const values = { d, h: d ? h : whole >= 3600 ? h : 0, m: whole >= 3600 ? two(m) : m, s: whole >= 60 ? two(s) : s };
  const form = whole < 60 ? page.seconds : whole < 3600 ? page.minutes : whole < 86400 ? page.hours : page.days;
  return form.replace(/\{(\w)\}/g, (_, name) => values[name]);
}
