"""Plots of a report as SVG or PNG: scores with their intervals, and differences around zero.

Each metric has a panel of its own, because scales differ.
"""

import io
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from trainers.evaluation.results import PairedDifference
from trainers.reports.content import ReportContent, format_value

ImageFormat = Literal["svg", "png"]

COLORS = {"better": "#1a7f37", "worse": "#c62828", "undecided": "#6b7280"}
INK, MUTED, ACCENT = "#1f2933", "#9aa5b1", "#2f5d9b"
MAX_PANELS = 9
COLUMNS = 3
PANEL_INCHES = 3.5
ROW_INCHES = 0.34
MAX_LABEL_CHARACTERS = 24
# Names of models are texts: a `$` in one begins no formula. The hash makes equal reports equal files.
STYLE: dict[str, Any] = {
    "text.parse_math": False,
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.hashsalt": "tunesmith",
}


def plot_scores(content: ReportContent, image_format: ImageFormat) -> bytes:
    """Return a panel for each metric with the score of each model and its interval."""

    def draw(axes: Axes, metric: str) -> None:
        models = [(each, content.find_score(each, metric)) for each in content.result.models]
        scored = [(each, score) for each, score in models if score is not None]
        for position, (_, score) in enumerate(scored):
            color = ACCENT if position == 0 else INK
            _draw_interval(axes, position, score.value, score.interval_95, color)
        _label(axes, metric, [content.label(model.role) for model, _ in scored])

    return _draw_panels(content.metrics, len(content.result.models), draw, image_format)


def plot_differences(content: ReportContent, image_format: ImageFormat) -> bytes | None:
    """Return a panel for each metric with the difference to each other model; None without differences."""
    metrics = [metric for metric in content.metrics if content.differences_by(metric)]
    if not metrics:
        return None

    def draw(axes: Axes, metric: str) -> None:
        differences: Sequence[PairedDifference] = content.differences_by(metric)
        axes.axvline(0, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        for position, each in enumerate(differences):
            color = COLORS[each.verdict]
            _draw_interval(axes, position, each.difference, each.interval_95, color, is_signed=True)
        _label(axes, metric, [f"minus {content.label(each.other)}" for each in differences])

    return _draw_panels(metrics, len(content.result.models) - 1, draw, image_format)


def _draw_panels(
    metrics: Sequence[str], n_rows: int, draw: Callable[[Axes, str], None], image_format: ImageFormat
) -> bytes:
    shown = metrics[:MAX_PANELS]
    columns = min(COLUMNS, len(shown))
    lines = math.ceil(len(shown) / columns)
    height = 0.9 + ROW_INCHES * max(1, n_rows)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(PANEL_INCHES * columns, height * lines), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(lines, columns, squeeze=False).flatten()
        for axes, metric in zip(panels, shown, strict=False):
            draw(axes, metric)
        for axes in panels[len(shown) :]:
            axes.set_visible(False)
        buffer = io.BytesIO()
        # Without the time, or equal results would have unequal reports.
        metadata = {"Date": None} if image_format == "svg" else {}
        figure.savefig(buffer, format=image_format, dpi=110, metadata=metadata)
        return buffer.getvalue()


def _draw_interval(
    axes: Axes,
    position: int,
    value: float,
    interval: tuple[float, float] | None,
    color: str,
    *,
    is_signed: bool = False,
) -> None:
    if interval is not None:
        axes.plot(
            interval, [position, position], color=color, linewidth=2, solid_capstyle="round", alpha=0.55
        )
    axes.plot([value], [position], "o", color=color, markersize=6)
    sign = "+" if is_signed and value > 0 else ""
    axes.annotate(
        f"{sign}{format_value(value)}",
        (value, position),
        textcoords="offset points",
        xytext=(0, 6),
        ha="center",
        fontsize=8,
        color=color,
    )


def _label(axes: Axes, metric: str, names: Sequence[str]) -> None:
    axes.set_title(metric, fontsize=10, fontweight="bold", loc="left")
    axes.set_yticks(range(len(names)), [_shorten(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.75)
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.15)
    axes.locator_params(axis="x", nbins=5)
    axes.grid(axis="x", color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _shorten(name: str) -> str:
    """Return a name that fits next to a panel; the end of an id is what distinguishes it."""
    return name if len(name) <= MAX_LABEL_CHARACTERS else f"…{name[-MAX_LABEL_CHARACTERS + 1 :]}"
