"""How objects draw themselves in a notebook: HTML and inline SVG, with every text escaped.

The functions take views; their types are in the modules that import this one.
"""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT, MARGIN = 480, 160, 6
# Readable on a light and on a dark page.
COLOURS = {
    "succeeded": "#2e8b57",
    "failed": "#c0392b",
    "cancelled": "#8a8a8a",
    "skipped": "#8a8a8a",
    "running": "#2874c8",
}
MAX_FAULTS = 10
# More points than pixels make the drawing large, not exact.
MAX_POINTS = 480


def draw_job(job: Any) -> str:
    """Return a job as a table of its runs with their progress."""
    rows = [
        [
            _text(run.name),
            _status(run.status),
            _bar(run.progress),
            _text(run.waiting_for or (run.error.message if run.error else "")),
        ]
        for run in job.runs
    ]
    title = f"<b>{_text(job.name)}</b> <code>{_text(job.id)}</code> {_status(job.status)}"
    warnings = "".join(f"<li>{_text(one.run)}: {_text(one.message)}</li>" for one in job.warnings[:5])
    return f"<div>{title}{_table(['stage', 'status', 'progress', ''], rows)}<ul>{warnings}</ul></div>"


def draw_run(run: Any, points: Sequence[Any]) -> str:
    """Return a run with its progress and its loss curve."""
    steps = "" if run.total_steps is None else f"step {run.step:,} of {run.total_steps:,}"
    error = "" if run.error is None else f"<p>{_text(run.error.message)} {_text(run.error.hint or '')}</p>"
    title = f"<b>{_text(run.full_name)}</b> <code>{_text(run.id)}</code> {_status(run.status)} {steps}"
    name = next((name for name in ("loss", "reward") if any(name in one.values for one in points)), None)
    curve = "" if name is None else draw_curve(points, name)
    return f"<div>{title}<br>{_bar(run.progress)}{error}{curve}</div>"


def draw_curve(points: Sequence[Any], name: str) -> str:
    """Return the curve of a metric as SVG."""
    found = [
        (one.step, one.values[name])
        for one in points
        if one.step is not None and one.values.get(name) is not None
    ]
    if len(found) < 2:
        return ""
    found = [*found[:: max(1, len(found) // MAX_POINTS)], found[-1]]
    (first, last), values = (found[0][0], found[-1][0]), [value for _, value in found]
    low, high = min(values), max(values)

    def place(step: int, value: float) -> str:
        x = MARGIN + (WIDTH - 2 * MARGIN) * (step - first) / max(1, last - first)
        y = HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (value - low) / ((high - low) or 1)
        return f"{x:.1f},{y:.1f}"

    line = " ".join(place(step, value) for step, value in found)
    label = f"{name}: {values[0]:.4g} → {values[-1]:.4g}, lowest {low:.4g}, steps {first:,} to {last:,}"
    return (
        f'<figure style="margin:0"><svg role="img" aria-label="{_text(label)}" width="{WIDTH}" '
        f'height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"><polyline fill="none" stroke="#2874c8" '
        f'stroke-width="1.5" points="{line}"/></svg><figcaption>{_text(label)}</figcaption></figure>'
    )


def draw_scores(models: Iterable[Any], n: int) -> str:
    """Return the scores of models, with their intervals."""
    rows = [
        [
            _text(model.role),
            _text(model.model),
            _text(score.metric),
            f"{score.value:.4g}",
            _interval(score),
            f"{score.n:,}",
        ]
        for model in models
        for score in model.scores
    ]
    return _table(["role", "model", "metric", "value", "95 % interval", "rows"], rows)


def draw_differences(differences: Sequence[Any]) -> str:
    """Return the paired differences of models; nothing if there are none."""
    if not differences:
        return ""
    rows = [
        [
            _text(f"{one.role} − {one.other}"),
            _text(one.metric),
            f"{one.difference:+.4g}",
            _interval(one),
            f"{one.p_adjusted:.3g}",
            f"{one.wins:,} / {one.losses:,} / {one.ties:,}",
            f"<b>{_text(one.verdict)}</b>",
        ]
        for one in differences
    ]
    names = ["difference", "metric", "value", "95 % interval", "p", "won / lost / equal", "verdict"]
    return _table(names, rows)


def draw_report(name: str, report: Any) -> str:
    """Return the findings of a file."""
    # Imported here, because `import tunesmith` does not need it.
    from trainers.data.faults import share_by_code

    counts = {"row": report.row_count, "fault": report.fault_count, "warning": report.warning_count}
    count = ", ".join(f"{n:,} {noun}{'' if n == 1 else 's'}" for noun, n in counts.items())
    rows = [
        [_text("" if one.line is None else one.line), _text(one.code), _text(one.message)]
        for one in share_by_code([*report.faults, *report.warnings], MAX_FAULTS)
    ]
    findings = _table(["line", "kind", "message"], rows) if rows else ""
    return f"<div><b>{_text(name)}</b> {count}{findings}</div>"


def _interval(one: Any) -> str:
    return "" if one.interval_95 is None else f"{one.interval_95[0]:.4g} to {one.interval_95[1]:.4g}"


def _status(status: str) -> str:
    return f'<span style="color:{COLOURS.get(status, "inherit")}">{_text(status)}</span>'


def _bar(progress: float) -> str:
    return f'<progress max="1" value="{min(1.0, max(0.0, progress)):.3f}">{progress:.0%}</progress>'


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of cells that are already HTML."""
    head = "".join(f"<th>{_text(name)}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _text(value: object) -> str:
    return escape(str(value), quote=True)
