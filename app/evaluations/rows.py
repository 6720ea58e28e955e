"""The rows of a stored evaluation next to those of another one: changed ones first, filtered, in pages.

The index decides the order and the filter; only the rows of the page are read from the file of rows.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from app.evaluations.schemas import EvaluationRowView, OtherRowView, RowChange, RowFilter
from app.evaluations.service import get_evaluation, list_siblings
from app.evaluations.stored_files import fetch_stored_file
from app.http.errors import UnprocessableContent, field_error
from app.storage.database import read_session
from app.storage.manifest import ArtifactCorrupt
from app.tables import Evaluation
from trainers.evaluation.results import Score
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
# Of as many rows, a page takes 0.7 s of CPU and 130 MiB; against another run, 2 s and 300 MiB.
MAX_PAGED_ROWS = 100_000
# The rows of a page together, unless the first alone has more.
MAX_PAGE_BYTES = 16 << 20


@dataclass(slots=True)
class _Pair:
    """A row of the evaluation, and the same row of the other one."""

    own: IndexedRow
    other: IndexedRow | None
    value: float | None
    difference: float | None
    """Positive if this evaluation is better; None if one has no value."""

    @property
    def change(self) -> RowChange | None:
        if self.difference is None:
            return None
        if self.difference == 0:
            return RowChange.tied
        return RowChange.won if self.difference > 0 else RowChange.lost


def list_rows(
    evaluation_id: str,
    against: str | None,
    metric: str | None,
    row_filter: RowFilter | None,
    after: int,
    limit: int,
) -> tuple[list[EvaluationRowView], int | None]:
    """Return up to `limit` rows from position `after`, and the position of the next page.

    Raises EvaluationNotFound, UnprocessableContent for a metric or filter that does not apply, or
    ArtifactCorrupt.
    """
    own, other = _load(evaluation_id, against)
    _check_size(own, other)
    score = _find_score(own, metric)
    try:
        pairs = _order(_filter(_pair(own, other, score), own, other, score, row_filter))
        page = _cut(pairs[after : after + limit])
        rows = _view_rows(page, own, other)
    except msgspec.MsgspecError as error:
        raise ArtifactCorrupt(own.artifact, f"its rows are not of the expected form: {error}") from error
    following = after + len(page)
    return rows, following if following < len(pairs) else None


def _load(evaluation_id: str, against: str | None) -> tuple[Evaluation, Evaluation | None]:
    """Return the evaluation, and the one to compare with: by default the baseline of its run."""
    with read_session() as session:
        own = get_evaluation(session, evaluation_id)
        if against is not None:
            return own, get_evaluation(session, against)
        siblings = list_siblings(session, own)
    return own, next((other for other in siblings if other.role == BASELINE), None)


def _check_size(*evaluations: Evaluation | None) -> None:
    for evaluation in evaluations:
        if evaluation is not None and evaluation.n > MAX_PAGED_ROWS:
            raise UnprocessableContent(
                f"The evaluation {evaluation.id} has {evaluation.n:,} rows; at most {MAX_PAGED_ROWS:,} are "
                "listed in pages.",
                hint=f"Download all with GET /api/v1/evaluations/{evaluation.id}/download.",
            )


def _find_score(evaluation: Evaluation, metric: str | None) -> Score:
    scores = [Score.model_validate(score) for score in evaluation.scores]
    found = next((score for score in scores if score.metric == (metric or evaluation.metric)), None)
    if found is None:
        names = ", ".join(score.metric for score in scores)
        raise field_error("metric", f"The evaluation has no metric {metric!r}. Its metrics: {names}.")
    return found


def _pair(own: Evaluation, other: Evaluation | None, score: Score) -> list[_Pair]:
    rows = list(read_index(_fetch(own, INDEX)))
    return [
        _make_pair(row, match, own, other, score)
        for row, match in zip(rows, _find_matches(rows, own, other), strict=True)
    ]


def _find_matches(
    rows: list[IndexedRow], own: Evaluation, other: Evaluation | None
) -> Iterable[IndexedRow | None]:
    """Return the same rows of the other evaluation.

    Those of another run are found by their hash; of equal rows, the nth belongs to the nth of the other.
    """
    if other is None:
        return [None] * len(rows)
    if other.artifact == own.artifact:
        return rows
    by_key: dict[str, list[IndexedRow]] = {}
    for row in reversed(list(read_index(_fetch(other, INDEX)))):
        by_key.setdefault(row.key, []).append(row)
    return [by_key[row.key].pop() if by_key.get(row.key) else None for row in rows]


def _make_pair(
    row: IndexedRow, match: IndexedRow | None, own: Evaluation, other: Evaluation | None, score: Score
) -> _Pair:
    value = row.value(own.role, score.metric)
    theirs = match.value(other.role, score.metric) if match is not None and other is not None else None
    difference = None if value is None or theirs is None else value - theirs
    if difference is not None and not score.higher_is_better:
        difference = -difference
    return _Pair(row, match, value, difference)


def _filter(
    pairs: list[_Pair],
    own: Evaluation,
    other: Evaluation | None,
    score: Score,
    row_filter: RowFilter | None,
) -> list[_Pair]:
    if row_filter is None:
        return pairs
    if row_filter is RowFilter.wrong:
        if any(pair.value not in (None, 0, 1) for pair in pairs):
            raise field_error(
                "filter", f"Rows are neither right nor wrong by {score.metric}, which has degrees."
            )
        return [pair for pair in pairs if pair.value == 0 or own.role in pair.own.failed]
    if other is None:
        raise field_error("filter", "Name another evaluation in `against`: the run has no baseline.")
    return [pair for pair in pairs if pair.change is RowChange(row_filter)]


def _order(pairs: list[_Pair]) -> list[_Pair]:
    """Return the rows by the size of their change, the largest first; equal ones stay in order."""
    return sorted(pairs, key=lambda pair: -abs(pair.difference or 0))


def _cut(page: list[_Pair]) -> list[_Pair]:
    """Return the first rows that are within the size of a page, at least one."""
    size_bytes = 0
    for position, pair in enumerate(page):
        size_bytes += pair.own.size_bytes + (pair.other.size_bytes if pair.other is not None else 0)
        if size_bytes > MAX_PAGE_BYTES:
            return page[: max(1, position)]
    return page


def _view_rows(page: list[_Pair], own: Evaluation, other: Evaluation | None) -> list[EvaluationRowView]:
    stored = read_stored_rows(_fetch(own, ROWS), [pair.own for pair in page])
    matches = [pair.other for pair in page if pair.other is not None]
    others = iter(read_stored_rows(_fetch(other, ROWS), matches) if other is not None else [])
    return [_view_row(pair, row, own, other, others) for pair, row in zip(page, stored, strict=True)]


def _view_row(
    pair: _Pair, row: StoredRow, own: Evaluation, other: Evaluation | None, others: Iterator[StoredRow]
) -> EvaluationRowView:
    ours = row.models.get(own.role, ModelRow([]))
    theirs = None
    if pair.other is not None and other is not None:
        theirs = next(others).models.get(other.role)
    return EvaluationRowView(
        row=row.row,
        prompt=row.prompt,
        reference=row.reference,
        fields=row.fields,
        responses=ours.responses,
        values=ours.values,
        details=ours.details,
        other=None
        if theirs is None
        else OtherRowView(responses=theirs.responses, values=theirs.values, details=theirs.details),
        change=pair.change,
    )


def _fetch(evaluation: Evaluation, name: str) -> Path:
    return fetch_stored_file(evaluation.artifact, evaluation.sha256, name)
