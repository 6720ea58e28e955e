// The end of a run's log: new lines are appended, followed and searched.
import { onEvent } from "./live.js";

const MAX_LINES = 5000;

export function startLog() {
  const box = document.getElementById("log");
  const follow = document.getElementById("log-follow");
  const search = document.getElementById("log-search");
  const count = document.getElementById("log-count");
  const scroll = () => follow.checked && (box.scrollTop = box.scrollHeight);
  const filter = () => {
    const wanted = search.value.toLowerCase();
    let found = 0;
    for (const line of box.children) {
      const matches = line.textContent.toLowerCase().includes(wanted);
      line.hidden = !matches;
      found += matches;
    }
    count.textContent = wanted ? count.dataset.form.replace("{n}", found) : "";
    scroll();
  };
  onEvent("log", (data) => {
    appendLines(box, JSON.parse(data));
    if (search.value) filter();
    scroll();
  });
  search.addEventListener("input", filter);
  follow.addEventListener("change", scroll);
  // Who scrolls up wants to read: the log stays there until its end is reached again.
  box.addEventListener("scroll", () => {
    const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 24;
    if (isAtEnd !== follow.checked) follow.checked = isAtEnd;
  });
  scroll();
}

function appendLines(box, lines) {
  box.append(
    ...lines.map((line) => {
      const element = document.createElement("div");
      element.textContent = line;
      return element;
    }),
  );
  while (box.childElementCount > MAX_LINES) box.firstElementChild.remove();
}
