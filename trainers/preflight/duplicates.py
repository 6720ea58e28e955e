"""Findings of similar rows: within the training data, and between it and held-out rows."""

import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from trainers.data.filters.near_duplicates import NearDuplicateIndex, shingles
from trainers.data.filters.overlap import OverlapReport, find_numbers, find_overlap
from trainers.data.fingerprint import prompt_text, row_text
from trainers.data.formats import Row, detect_format
from trainers.data.texts.folding import fold_text
from trainers.preflight.findings import Finding, FindingCode, FindingLevel, FindingPlace, new_finding
from trainers.rendering.render import read_rows
from trainers.runtime.errors import DatasetFileNotFound, DatasetInvalid

NEAR_SIMILARITY = 0.9
# A smaller share does no harm; GSM8K itself has some near duplicates.
NEAR_SHARE = 0.01
# About 3,000 rows per second are compared, so this takes less than half a minute.
MAX_NEAR_ROWS = 50_000

logger = logging.getLogger("trainers")


def check_near_duplicates(dataset: Path) -> Iterator[Finding]:
    """Yield a finding if many of the first 50,000 rows are almost the same; too slow for every training run.

    Equal rows are another finding. Rows that differ in a number, or are the two directions of a translation,
    are different rows.
    """
    index = NearDuplicateIndex(NEAR_SIMILARITY, MAX_NEAR_ROWS)
    seen: dict[int, tuple[str, str]] = {}
    places: list[FindingPlace] = []
    rows = 0
    for line, row in islice(read_rows(dataset), MAX_NEAR_ROWS):
        rows += 1
        seen[line] = texts = _extract_texts(row)
        found = index.match_or_add(line, texts[1])[0]
        similar = [(similarity, other) for other, similarity in found if _is_same_content(seen[other], texts)]
        if similar:
            similarity, other = max(similar)
            places.append((line, f"About {similarity:.0%} of the row's text is also in line {other}."))
    if places and len(places) >= NEAR_SHARE * rows:
        yield new_finding(
            FindingCode.near_duplicates,
            FindingLevel.warning,
            f"{len(places)} of {rows} rows are almost the same as an earlier one.",
            "Drop them with the filter `near_duplicates` of `prepare`.",
            places=places,
            count=len(places),
            rows=rows,
        )


def check_overlap(dataset: Path, held_out: Sequence[Path], *, exact_only: bool = False) -> Iterator[Finding]:
    """Yield findings for held-out rows that are also in the training data, exactly or almost.

    Near matches are searched only if both datasets have at most 50,000 rows. Raises DatasetFileNotFound or
    DatasetInvalid.
    """
    for test in held_out:
        is_large = any(_has_more_rows(path, MAX_NEAR_ROWS) for path in (test, dataset))
        if is_large and not exact_only:
            logger.info("%s: too many rows to search for near matches.", test.name)
        report = _compare(dataset, test, exact_only or is_large)
        if report.exact_test_rows:
            yield new_finding(
                FindingCode.test_rows_in_training,
                FindingLevel.error,
                f"{report.exact_test_rows} of {report.test_rows} held-out rows are in the training data.",
                "Drop them from the training data with the filter `held_out` of `prepare`.",
                places=_places(report, are_exact=True),
                count=report.exact_test_rows,
                rows=report.test_rows,
            )
        if report.near_test_rows:
            yield new_finding(
                FindingCode.test_rows_nearly_in_training,
                FindingLevel.warning,
                f"{report.near_test_rows} of {report.test_rows} held-out rows are in the training data "
                "with small changes.",
                "Drop them from the training data with the filter `held_out` of `prepare` and a threshold.",
                places=_places(report, are_exact=False),
                count=report.near_test_rows,
                rows=report.test_rows,
            )


def _extract_texts(row: Row) -> tuple[str, str]:
    """Return the folded text of the prompt, and of the whole row."""
    row_format = detect_format(row)
    assert row_format is not None, "the rows were parsed before"
    return fold_text(prompt_text(row, row_format)), fold_text(row_text(row, row_format))


def _is_same_content(left: tuple[str, str], right: tuple[str, str]) -> bool:
    """Return whether two different texts have almost the same prompt and the same numbers."""
    if left == right or find_numbers(left[1]) != find_numbers(right[1]):
        return False
    ours, theirs = shingles(left[0]), shingles(right[0])
    return len(ours & theirs) >= NEAR_SIMILARITY * len(ours | theirs)


def _has_more_rows(path: Path, count: int) -> bool:
    if not path.is_file():
        raise DatasetFileNotFound(f"The dataset {path} does not exist.", "Use the path of a JSONL file.")
    with path.open("rb") as lines:
        return next(islice(lines, count, None), None) is not None


def _compare(dataset: Path, test: Path, exact_only: bool) -> OverlapReport:
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
            match.train_line,
            f"row {match.test_line} of the held-out data"
            + ("" if are_exact else f", {match.similarity:.0%} similar"),
        )
        for match in report.first
        if match.is_exact is are_exact
    ]
