"""What a report contains: the result, and the rows whose value changed most."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.evaluation.results import EvaluationResult, ModelScores, PairedDifference, Score
from trainers.evaluation.row_index import (
    INDEX,
    ROWS,
    IndexedRow,
    ModelRow,
    StoredRow,
    read_index,
    read_stored_rows,
)

BASELINE = "baseline"
# Of each of the rows that were lost and won.
MAX_CHANGED_ROWS = 10
MAX_TEXT_CHARACTERS = 1500
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True)
class ChangedRow:
    """A row on which two models differ, with texts of a bounded length."""

    row: int
    prompt: str
    reference: str
    values: tuple[float, float]
    responses: tuple[str, str]


@dataclass(frozen=True)
class ReportContent:
    """Everything that a report shows."""

    title: str
    result: EvaluationResult
    metrics: list[str]
    """Names of the metrics, the main one first."""
    other: ModelScores | None
    """The model whose rows the changed ones are compared with."""
    lost: list[ChangedRow]
    """Rows on which the first model is worse than the other, the largest change first."""
    won: list[ChangedRow]
    n_lost: int
    n_won: int

    @property
    def model(self) -> ModelScores:
        """The model that is compared with the others."""
        return self.result.models[0]

    def find_score(self, model: ModelScores, metric: str) -> Score | None:
        """Return a model's score by a metric."""
        return next((score for score in model.scores if score.metric == metric), None)

    def differences_by(self, metric: str) -> list[PairedDifference]:
        """Return the differences by a metric."""
        return [each for each in self.result.differences if each.metric == metric]

    def label(self, role: str) -> str:
        """Return a short name: the role; in a comparison, whose roles are ids, the model if it is unique."""
        models = [each.model for each in self.result.models]
        model = self._model_of(role)
        return model if self.result.stage == "compare" and models.count(model) == 1 else role

    def name(self, role: str) -> str:
        """Return a model as a person reads it, with its role."""
        model, label = self._model_of(role), self.label(role)
        if model == role:
            return role
        return f"{model} ({role})" if label == model else f"{role} ({model})"

    def _model_of(self, role: str) -> str:
        return next((each.model for each in self.result.models if each.role == role), role)


def read_content(folder: Path, result: EvaluationResult) -> ReportContent:
    """Read what the report of an evaluation folder contains."""
    model, *others = result.models
    metric = model.scores[0]
    other = next((each for each in others if each.role == BASELINE), others[0] if others else None)
    changed = _list_changed(folder / INDEX, model.role, other.role, metric) if other is not None else []
    lost = [(change, row) for change, row in changed if change < 0]
    won = [(change, row) for change, row in changed if change > 0]
    roles = model.role, other.role if other is not None else ""
    return ReportContent(
        title="Comparison" if result.stage == "compare" else f"Evaluation of {model.model}",
        result=result,
        metrics=list(dict.fromkeys(score.metric for each in result.models for score in each.scores)),
        other=other,
        lost=_read_rows(folder, lost, roles, metric.metric),
        won=_read_rows(folder, won, roles, metric.metric),
        n_lost=len(lost),
        n_won=len(won),
    )


def _list_changed(index: Path, role: str, other: str, score: Score) -> list[tuple[float, IndexedRow]]:
    """Return the rows whose values differ, the largest change first; a positive change is an improvement."""
    changed = []
    for row in read_index(index):
        own, theirs = row.value(role, score.metric), row.value(other, score.metric)
        if own is not None and theirs is not None and own != theirs:
            changed.append(((own - theirs) * (1 if score.higher_is_better else -1), row))
    return sorted(changed, key=lambda each: -abs(each[0]))


def _read_rows(
    folder: Path, changed: Sequence[tuple[float, IndexedRow]], roles: tuple[str, str], metric: str
) -> list[ChangedRow]:
    chosen = [row for _, row in changed[:MAX_CHANGED_ROWS]]
    return [_make_row(row, roles, metric) for row in read_stored_rows(folder / ROWS, chosen)]


def _make_row(row: StoredRow, roles: tuple[str, str], metric: str) -> ChangedRow:
    first, second = (row.models.get(role) or ModelRow([]) for role in roles)
    users = (turn for turn in reversed(row.prompt) if turn.get("role") == "user")
    source: dict[str, Any] = next(users, {})
    return ChangedRow(
        row=row.row,
        prompt=shorten(source.get("content", "")),
        reference=shorten(row.reference),
        values=(first.values.get(metric) or 0.0, second.values.get(metric) or 0.0),
        responses=(_first_response(first), _first_response(second)),
    )


def _first_response(model: ModelRow) -> str:
    response = model.responses[0] if model.responses else None
    return shorten(response) if response is not None else "(no response)"


def shorten(value: Any) -> str:
    """Return a text of a bounded length, in which characters that no document may contain are replaced."""
    text = value if isinstance(value, str) else str(value)
    text = "".join(
        c if c in "\n\t" or (c >= " " and c != "\x7f") else "\N{REPLACEMENT CHARACTER}" for c in text
    )
    rest = len(text) - MAX_TEXT_CHARACTERS
    return text if rest <= 0 else f"{text[:MAX_TEXT_CHARACTERS]} … ({rest:,} more characters)"


def format_value(value: float) -> str:
    """Return a value with the digits that a person compares: 0.754, 31.25."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:.3f}" if abs(value) < 2 else f"{value:,.2f}"


def format_interval(interval: tuple[float, float] | None) -> str:
    """Return an interval, or a dash without one."""
    if interval is None:
        return "–"
    digits = 3 if max(map(abs, interval)) < 2 else 2
    return f"{interval[0]:,.{digits}f} to {interval[1]:,.{digits}f}"


def format_p(p: float) -> str:
    """Return a p-value; a very small one has no meaningful digits."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
