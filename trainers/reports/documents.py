"""A report as HTML and as Markdown. Responses of models may be any HTML or Markdown: they are shown as text.

The HTML has no script and loads nothing; plots are images within it.
"""

import base64
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import ValidationError

from trainers.evaluation.results import PairedDifference
from trainers.evaluation.slices import SliceScores
from trainers.reports.content import ReportContent, format_interval, format_p, format_value
from trainers.reports.plots import ImageFormat, plot_differences, plot_scores
from trainers.statistics.power import describe_power

HTML: Final = "report.html"
MARKDOWN: Final = "report.md"
VERDICTS: Final = {"better": "Better", "worse": "Worse", "undecided": "Undecided"}
MAX_SLICES: Final = 50
MAX_CELL_CHARACTERS: Final = 300

Table = list[list[str]]
"""Lines of cells; the first one is the header."""


def write_reports(folder: Path, content: ReportContent) -> None:
    """Write both forms of the report into a folder."""
    (folder / HTML).write_text(render_html(content), encoding="utf-8")
    (folder / MARKDOWN).write_text(render_markdown(content), encoding="utf-8")


def render_html(content: ReportContent) -> str:
    """Return the report as a page."""
    return _environment(autoescape=True).get_template("report.html.jinja").render(_variables(content, "svg"))


def render_markdown(content: ReportContent) -> str:
    """Return the report as Markdown, in which no text of a model is markup."""
    text = _environment(autoescape=False).get_template("report.md.jinja").render(_variables(content, "png"))
    return re.sub(r"\n{3,}", "\n\n", text)


def _environment(*, autoescape: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("trainers.reports"),
        autoescape=autoescape,  # noqa: S701 — Markdown is escaped by its own filters
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "value": format_value,
        "interval": format_interval,
        "p": format_p,
        "power": _describe_power,
        "sentence": lambda text: f"{text[:1].upper()}{text[1:]}.",
        "inline": escape_inline,
        "fence": fence,
    }
    return environment


def _variables(content: ReportContent, image_format: ImageFormat) -> Mapping[str, Any]:
    differences = plot_differences(content, image_format)
    changed = [("Rows that became worse", content.lost, content.n_lost)]
    changed.append(("Rows that became better", content.won, content.n_won))
    return {
        "content": content,
        "verdicts": VERDICTS,
        "scores_plot": base64.b64encode(plot_scores(content, image_format)).decode(),
        "differences_plot": base64.b64encode(differences).decode() if differences is not None else None,
        "slices": _list_slices(content),
        "changed": [each for each in changed if each[1]],
        "provenance": _list_provenance(content),
    }


def _describe_power(difference: PairedDifference) -> str:
    is_share = "mcnemar" in difference.method.lower()
    return describe_power(difference.n, difference.detectable, is_share=is_share)


def _list_slices(content: ReportContent) -> Table:
    """Return the differences on the slices of the rows, in the order of the result: the worst come first."""
    lines = [
        [
            slice_scores.slice,
            f"{slice_scores.n:,}",
            each.metric,
            f"{content.label(each.role)} minus {content.label(each.other)}",
            f"{each.difference:+.3g}",
            format_interval(each.interval_95),
            format_p(each.p_adjusted),
            VERDICTS[each.verdict],
        ]
        for slice_scores in _parse_slices(content.result.details.get("slices"))
        for each in slice_scores.differences
    ]
    header = ["Slice", "Rows", "Metric", "Models", "Difference", "Interval", "p", "Verdict"]
    return [header, *lines[:MAX_SLICES]] if lines else []


def _parse_slices(slices: Any) -> list[SliceScores]:
    try:
        return [SliceScores.model_validate(each) for each in slices or ()]
    except (ValidationError, TypeError):
        return []


def _list_provenance(content: ReportContent) -> Table:
    """Return what the scores depend on, a column for each model."""
    columns = [_flatten(model.provenance) for model in content.result.models]
    names = list(dict.fromkeys(name for column in columns for name in column))
    if not names:
        return []
    header = ["", *(content.label(model.role) for model in content.result.models)]
    return [header, *([name, *(_cell(column.get(name)) for column in columns)] for name in names)]


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        flat |= _flatten(inner, f"{prefix}{name}.") if isinstance(inner, dict) else {f"{prefix}{name}": inner}
    return flat


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return format_value(value)
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_CELL_CHARACTERS else f"{text[:MAX_CELL_CHARACTERS]}…"


def escape_inline(text: str) -> str:
    """Return a text for a line of Markdown: every character that could begin markup is escaped."""
    return re.sub(r"([\\`*_{}\[\]()<>#+!|~&$:-])", r"\\\1", " ".join(text.split()))


def fence(text: str) -> str:
    """Return a text as a code block, whose fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    marks = "`" * max(3, longest + 1)
    return f"{marks}text\n{text}\n{marks}"
