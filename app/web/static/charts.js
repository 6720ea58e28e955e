// Curves by uPlot: one chart for the losses, and one for each other metric.
const HIDDEN = new Set(["epoch", "tokens", "peak_gpu_bytes", "num_tokens", "num_input_tokens_seen", "train_runtime"]);
// The charts after the losses, in this order; the others follow by name, and those that never change are last.
const FIRST = [/^reward$/, /^rewards\/.+\/mean$/, /^learning_rate$/, /^tokens_per_second$/, /^grad_norm$/, /^kl$/, /^completions\/mean_length$/];
const WIDE = ["loss", "reward"];
const MAX_CHARTS = 12;
// The average of fewer points is mostly its first ones.
const MIN_SMOOTHED = 20;
const RATE_SECONDS = 5;

export class Curves {
  constructor(root) {
    this.root = root;
    this.names = JSON.parse(root.dataset.names);
    this.steps = [];
    this.times = [];
    this.values = {};
    this.charts = new Map();
    this.options = { smooth: "0.6", x: "step" };
    this.lastSeq = 0;
    this.isLoaded = false;
    this.resizes = new ResizeObserver((entries) => {
      for (const { target } of entries) {
        const chart = this.charts.get(target.dataset.chart);
        if (chart && target.clientWidth) chart.setSize({ width: target.clientWidth, height: chart.height });
      }
    });
  }

  /** Adds rows of [event, step, seconds, value…]. An attempt that repeats steps replaces those after them. */
  add({ names, rows }) {
    for (const [seq, step, time, ...values] of rows) {
      if (seq <= this.lastSeq) continue;
      this.lastSeq = seq;
      const at = step ?? this.steps.at(-1) ?? 0;
      if (at < this.steps.at(-1)) this.cut(at);
      if (at !== this.steps.at(-1)) {
        this.steps.push(at);
        this.times.push(time);
        for (const column of Object.values(this.values)) column.push(null);
      }
      names.forEach((name, index) => {
        if (values[index] === null || values[index] === undefined) return;
        this.values[name] ??= new Array(this.steps.length).fill(null);
        this.values[name][this.steps.length - 1] = values[index];
      });
    }
  }

  cut(step) {
    const length = this.steps.findIndex((each) => each >= step);
    for (const column of [this.steps, this.times, ...Object.values(this.values)]) column.length = length;
  }

  draw(options) {
    if (options) this.options = options;
    if (!this.steps.length) {
      const text = this.isLoaded ? this.root.dataset.empty : this.root.dataset.loading;
      this.root.querySelector("p")?.replaceChildren(text);
      return;
    }
    this.root.querySelector(":scope > p")?.remove();
    if (options) return this.rebuild();
    const wanted = this.list();
    // A curve that has become long enough has no points any more, and a smoothed line.
    if (this.shapeOf(wanted) !== this.shape) return this.rebuild();
    for (const chart of wanted) {
      this.charts.get(chart.id).setData(this.data(chart));
      this.describe(chart);
    }
  }

  rebuild() {
    for (const chart of this.charts.values()) chart.destroy();
    this.charts.clear();
    this.resizes.disconnect();
    const wanted = this.list();
    this.shape = this.shapeOf(wanted);
    this.root.replaceChildren(...wanted.map((chart) => this.frame(chart)));
    for (const chart of wanted) this.build(chart);
    if (this.hasMore) this.root.append(Object.assign(document.createElement("p"), { className: "muted small", textContent: this.root.dataset.more }));
  }

  rank(name) {
    const place = FIRST.findIndex((pattern) => pattern.test(name));
    if (place >= 0) return place;
    const values = this.values[name].filter((value) => value !== null);
    return values.every((value) => value === values[0]) ? FIRST.length + 1 : FIRST.length;
  }

  shapeOf(charts) {
    return charts.flatMap(({ names }) => names.map((name) => `${name} ${this.count(name) >= MIN_SMOOTHED}`)).join();
  }

  /** The charts, each with the names of its curves. */
  list() {
    const rates = this.rates();
    if (rates) this.values.tokens_per_second = rates;
    const known = Object.keys(this.values).filter((name) => !HIDDEN.has(name) && !name.startsWith("validation_"));
    const ranks = new Map(known.map((name) => [name, this.rank(name)]));
    const others = known.filter((name) => name !== "loss").sort((a, b) => ranks.get(a) - ranks.get(b) || a.localeCompare(b));
    const losses = ["loss", "validation_loss"].filter((name) => this.values[name]);
    const charts = losses.length ? [{ id: "loss", names: losses }] : [];
    for (const name of others) charts.push({ id: name, names: [name] });
    // On-policy training is judged by its reward: its loss is near 0.
    if (others[0] === "reward") charts.unshift(...charts.splice(losses.length ? 1 : 0, 1));
    this.hasMore = charts.length > MAX_CHARTS;
    return charts.slice(0, MAX_CHARTS);
  }

  /** Tokens per second over the last seconds: the service stores points in batches. */
  rates() {
    const { tokens } = this.values;
    if (!tokens) return null;
    let from = 0;
    const rates = tokens.map((count, index) => {
      if (count === null) return null;
      while (from + 1 < index && this.times[index] - this.times[from + 1] >= RATE_SECONDS) from++;
      const seconds = this.times[index] - this.times[from];
      if (seconds < RATE_SECONDS || tokens[from] === null || count < tokens[from]) return null;
      return (count - tokens[from]) / seconds;
    });
    return rates.some((rate) => rate !== null) ? rates : null;
  }

  label(name) {
    return this.names[name] ?? name;
  }

  frame({ id, names }) {
    const figure = document.createElement("figure");
    figure.className = WIDE.includes(id) ? "chart wide-chart" : "chart";
    figure.innerHTML = "<figcaption><b></b> <span></span></figcaption><div class=\"plot\" role=\"img\"></div>";
    figure.querySelector("b").textContent = names.map((name) => this.label(name)).join(", ");
    figure.querySelector(".plot").dataset.chart = id;
    return figure;
  }

  build(chart) {
    const plot = this.root.querySelector(`[data-chart="${CSS.escape(chart.id)}"]`);
    const colors = chart.names.map((_, index) => colorOf(plot, ["--accent", "--amber"][index]));
    const axis = { stroke: colorOf(plot, "--muted"), grid: { stroke: colorOf(plot, "--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
    const series = chart.names.flatMap((name, index) => this.styles(name, colors[index]));
    const u = new uPlot(
      {
        width: plot.clientWidth || 300,
        height: WIDE.includes(chart.id) ? 260 : 180,
        cursor: { sync: { key: "run" }, points: { size: 6 } },
        legend: { live: true },
        scales: { x: { time: false }, y: this.options.log ? { distr: 3 } : { range } },
        axes: [{ ...axis, size: 30 }, { ...axis, size: 58, values: (_, ticks) => ticks.map(format) }],
        series: [{ label: this.options.x === "time" ? this.root.dataset.minutes : this.root.dataset.step }, ...series],
      },
      this.data(chart),
      plot,
    );
    this.charts.set(chart.id, u);
    this.resizes.observe(plot);
    this.describe(chart);
  }

  styles(name, color) {
    const value = (_, given) => (given === null || given === undefined ? "–" : format(given));
    const line = { label: this.label(name), stroke: color, width: 2, spanGaps: true, value, points: { show: false } };
    if (!this.isSmoothed(name)) return [{ ...line, points: { show: name.startsWith("validation_") || this.count(name) < MIN_SMOOTHED, size: 5, fill: color } }];
    return [{ ...line, alpha: 0.28, width: 1 }, { ...line, label: `${this.label(name)} (${this.root.dataset.smoothed})` }];
  }

  count(name) {
    return this.values[name].reduce((total, value) => total + (value !== null), 0);
  }

  isSmoothed(name) {
    return Number(this.options.smooth) > 0 && this.count(name) >= MIN_SMOOTHED && !["learning_rate", "tokens_per_second"].includes(name) && !name.startsWith("validation_");
  }

  data({ names }) {
    const start = this.times[0];
    const x = this.options.x === "time" ? increasing(this.times.map((time) => (time - start) / 60)) : this.steps;
    const columns = names.flatMap((name) => {
      const raw = this.values[name].map((value) => (this.options.log && value <= 0 ? null : value));
      return this.isSmoothed(name) ? [raw, smooth(raw, Number(this.options.smooth))] : [raw];
    });
    return [x, ...columns];
  }

  describe({ id, names }) {
    const plot = this.root.querySelector(`[data-chart="${CSS.escape(id)}"]`);
    const texts = names.map((name) => {
      let last = null, lowest = null, step = null;
      this.values[name].forEach((value, index) => {
        if (value === null) return;
        last = value;
        if (lowest === null || value < lowest) [lowest, step] = [value, this.steps[index]];
      });
      const { dataset } = this.root;
      const best = `${dataset.last} ${format(last)}`;
      return name.includes("loss") ? `${best} · ${dataset.lowest} ${format(lowest)} (${dataset.step} ${step})` : best;
    });
    const text = names.length > 1 ? names.map((name, index) => `${this.label(name)}: ${texts[index]}`).join(" — ") : texts[0];
    plot.setAttribute("aria-label", `${names.map((name) => this.label(name)).join(", ")}: ${text}`);
    plot.previousElementSibling.querySelector("span").textContent = text;
  }
}

/** The exponential moving average, corrected for its start. */
function smooth(values, weight) {
  let mean = 0, total = 0;
  return values.map((value) => {
    if (value === null) return null;
    mean = mean * weight + value * (1 - weight);
    total = total * weight + (1 - weight);
    return mean / total;
  });
}

/** The range of an axis: a curve that hardly changes is a line, and not its noise. */
function range(_, low, high) {
  if (low === null) return [0, 1];
  const least = Math.max(Math.abs(low), Math.abs(high)) * 0.02 || 1;
  const middle = (low + high) / 2;
  return high - low < least ? [middle - least, middle + least] : uPlot.rangeNum(low, high, 0.08, true);
}

/** Times of one batch are equal, but an axis must increase. */
function increasing(times) {
  let last = -1;
  return times.map((time) => (last = Math.max(time, last + 1e-6)));
}

export function format(value) {
  if (value === null || value === undefined) return "–";
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6)) return value.toExponential(2);
  return value.toLocaleString(document.documentElement.lang, { maximumSignificantDigits: 4 });
}

function colorOf(element, variable) {
  element.style.color = `var(${variable})`;
  const color = getComputedStyle(element).color;
  element.style.color = "";
  return color;
}
