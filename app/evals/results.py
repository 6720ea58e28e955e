"""The results of an eval run: counts, and the judgement of each item.

They are read from the files of the evaluation, which never change.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from app.evaluations.stored_files import fetch_stored_file
from app.tables import Evaluation, Run
from trainers.configs.graders import GRADER
from trainers.evaluation.row_index import (
    INDEX,
    ROWS,
    IndexedRow,
    StoredRow,
    read_index,
    read_stored_rows,
)

ROLE = "model"


@dataclass(frozen=True)
class Counts:
    """Numbers of items, or of items by one criterion. An item passes if it passes every criterion."""

    passed: int = 0
    failed: int = 0
    errored: int = 0

    @property
    def total(self) -> int:
        """All items."""
        return self.passed + self.failed + self.errored


@dataclass(frozen=True)
class RunCounts:
    """The counts of a run: of items, and by criterion in their order."""

    items: Counts
    criteria: tuple[Counts, ...]


def count_results(stage: Run, evaluation: Evaluation) -> RunCounts:
    """Return the counts of a run, of which this is the stage; raises ArtifactCorrupt."""
    return _count(evaluation.artifact, evaluation.sha256, list_thresholds(stage))


def list_thresholds(stage: Run) -> tuple[float, ...]:
    """Return the score from which an item passes, for each criterion.

    The stage has the graders with the models of the settings at the time of the run, which may have changed.
    """
    graders = (GRADER.validate_python(metric["grader"]) for metric in stage.config["metrics"])
    return tuple(grader.threshold for grader in graders)


def metric_name(position: int) -> str:
    """Return the name of a criterion's metric in the evaluation."""
    return f"criterion_{position}"


def judge(row: IndexedRow, thresholds: Sequence[float]) -> list[bool | None]:
    """Return whether an item passes each criterion; None where it has no score."""
    scores = [row.value(ROLE, metric_name(position)) for position in range(len(thresholds))]
    return [
        None if score is None else score >= threshold
        for score, threshold in zip(scores, thresholds, strict=True)
    ]


def decide(judged: Sequence[bool | None]) -> bool | None:
    """Return whether an item passes as a whole; None if a score is missing that could have decided."""
    if False in judged:
        return False
    return None if None in judged else True


def list_items(stage: Run, evaluation: Evaluation) -> list[tuple[IndexedRow, list[bool | None]]]:
    """Return the items in the order of the source, each with whether it passes each criterion."""
    thresholds = list_thresholds(stage)
    rows = read_index(_index(evaluation.artifact, evaluation.sha256))
    return [(row, judge(row, thresholds)) for row in rows]


def read_items(evaluation: Evaluation, rows: Sequence[IndexedRow]) -> list[StoredRow]:
    """Return the whole rows of items."""
    return read_stored_rows(fetch_stored_file(evaluation.artifact, evaluation.sha256, ROWS), rows)


@lru_cache(maxsize=256)
def _count(artifact: str, sha256: str, thresholds: tuple[float, ...]) -> RunCounts:
    judged = [judge(row, thresholds) for row in read_index(_index(artifact, sha256))]
    items = _tally([decide(each) for each in judged])
    return RunCounts(items, tuple(_tally(list(each)) for each in zip(*judged, strict=True)))


def _tally(results: Sequence[bool | None]) -> Counts:
    return Counts(results.count(True), results.count(False), results.count(None))


def _index(artifact: str, sha256: str) -> Path:
    return fetch_stored_file(artifact, sha256, INDEX)
