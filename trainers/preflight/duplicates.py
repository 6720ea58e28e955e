"""Findings of rows that are alike: within the training data, and between it and held-out rows."""

import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from trainers.data.filters.near_duplicates import NearDuplicateIndex, shingles
from trainers.data.filters.overlap import OverlapReport, find_numbers, find_overlap
from trainers.data.fingerprint import prompt_text, row_text
from trainers.data.formats import Row, detect_format
from trainers.preflight.findings import Finding, FindingCode, FindingLevel, FindingPlace, new_finding
from trainers.rendering.render import read_rows
from trainers.runtime.errors import DatasetFileNotFound, DatasetInvalid

NEAR_SIMILARITY = 0.9
# Fewer spoil nothing; GSM8K itself has some.
NEAR_SHARE = 0.01
# Some 3,000 rows a second are compared: more would keep a person waiting for minutes.
NEAR_ROWS = 50_000

logger = logging.getLogger("trainers")


def check_near_duplicates(dataset: Path) -> Iterator[Finding]:
    """Many rows that are almost alike, among the first 50,000; too costly for a training stage's start.

    Equal rows have a finding of their own. Rows that differ in a number, and the two directions of one
    translation, say different things.
    """
    index = NearDuplicateIndex(NEAR_SIMILARITY, NEAR_ROWS)
    said: dict[int, tuple[str, str]] = {}
    places: list[FindingPlace] = []
    rows = 0
    for line, row in islice(read_rows(dataset), NEAR_ROWS):
        rows += 1
        said[line] = texts = _texts(row)
        found = index.match_or_add(line, texts[1])[0]
        alike = [(similarity, other) for other, similarity in found if _say_the_same(said[other], texts)]
        if alike:
            similarity, other = max(alike)
            places.append((line, f"The row has about {similarity:.0%} of its text in common with {other}."))
    if places and len(places) >= NEAR_SHARE * rows:
        yield new_finding(
            FindingCode.near_duplicates,
            FindingLevel.warning,
            f"{len(places)} of {rows} rows are nearly the same as an earlier one.",
            "Drop them with `prepare` and its filter `near_duplicates`.",
            places=places,
            count=len(places),
            rows=rows,
        )


def check_overlap(dataset: Path, held_out: Sequence[Path], *, exact_only: bool = False) -> Iterator[Finding]:
    """Rows of held-out datasets that stand in the training data too, exactly or nearly.

    Near ones are looked for among up to 50,000 rows only. Raises DatasetNotFound or DatasetInvalid.
    """
    for test in held_out:
        is_large = any(_has_more_rows(path, NEAR_ROWS) for path in (test, dataset))
        if is_large and not exact_only:
            logger.info("%s: too many rows to look for nearly equal ones.", test.name)
        report = _overlap(dataset, test, exact_only or is_large)
        if report.exact_test_rows:
            yield new_finding(
                FindingCode.test_rows_in_training,
                FindingLevel.error,
                f"{report.exact_test_rows} of {report.test_rows} held-out rows stand in the training data.",
                "Drop them from training with `prepare` and its filter `held_out`.",
                places=_places(report, are_exact=True),
                count=report.exact_test_rows,
                rows=report.test_rows,
            )
        if report.near_test_rows:
            yield new_finding(
                FindingCode.test_rows_nearly_in_training,
                FindingLevel.warning,
                f"{report.near_test_rows} of {report.test_rows} held-out rows stand in the training data "
                "with small changes.",
                "Drop them from training with `prepare` and its filter `held_out`, with a threshold.",
                places=_places(report, are_exact=False),
                count=report.near_test_rows,
                rows=report.test_rows,
            )


def _texts(row: Row) -> tuple[str, str]:
    """What is asked in a row, and all that is said."""
    row_format = detect_format(row)
    assert row_format is not None, "the rows have been read as prompts and answers before"
    return prompt_text(row, row_format), row_text(row, row_format)


def _say_the_same(left: tuple[str, str], right: tuple[str, str]) -> bool:
    """Whether two rows are worded otherwise, but ask nearly the same and hold the same numbers."""
    if left == right or find_numbers(left[1]) != find_numbers(right[1]):
        return False
    ours, theirs = shingles(left[0]), shingles(right[0])
    return len(ours & theirs) >= NEAR_SIMILARITY * len(ours | theirs)


def _has_more_rows(path: Path, count: int) -> bool:
    if not path.is_file():
        raise DatasetFileNotFound(f"The dataset {path} does not exist.", "Name the path of a JSONL file.")
    with path.open("rb") as lines:
        return next(islice(lines, count, None), None) is not None


def _overlap(dataset: Path, test: Path, exact_only: bool) -> OverlapReport:
    try:
        return find_overlap(
            dataset, test, threshold=NEAR_SIMILARITY, same_numbers=True, exact_only=exact_only
        )
    except ValueError as error:
        raise DatasetInvalid(
            f"The held-out data cannot be compared: {error}", "Correct the named row of the dataset."
        ) from error


def _places(report: OverlapReport, *, are_exact: bool) -> list[FindingPlace]:
    return [
        (
            met.train_line,
            f"row {met.test_line} of the held-out data"
            + ("" if are_exact else f", {met.similarity:.0%} alike"),
        )
        for met in report.first
        if met.is_exact is are_exact
    ]
