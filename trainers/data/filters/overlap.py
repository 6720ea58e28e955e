"""Rows of a test set that also occur in a training set, exactly or nearly.

A score on such rows measures memory, not ability. Only programs import this module (see
`trainers.data.filters.near_duplicates`).
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from pydantic import BaseModel, Field

from trainers.data.files.jsonl import iter_rows
from trainers.data.filters.near_duplicates import NearDuplicateIndex
from trainers.data.fingerprint import prompt_text, text_digest
from trainers.data.formats import Row, RowFormat, detect_format
from trainers.data.texts.folding import fold_text

MAX_TEST_ROWS: Final = 50_000


class Overlap(BaseModel):
    """A test row that occurs in the training set."""

    test_line: int = Field(description="Line in the test set, from 1.")
    train_line: int = Field(description="Line in the training set, from 1.")
    is_exact: bool = Field(description="Whether the texts are equal, as people read them.")
    similarity: float = Field(description="Share of common text: 1 if equal, else a MinHash estimate.")


class OverlapReport(BaseModel):
    """Overlap of a test set and a training set."""

    test_rows: int = Field(description="Number of test rows.")
    train_rows: int = Field(description="Number of training rows.")
    exact_test_rows: int = Field(description="Number of test rows that occur exactly in the training set.")
    near_test_rows: int = Field(
        description="Number of test rows that occur nearly, but not exactly, in the training set."
    )
    first: list[Overlap] = Field(description="The first overlaps, in the order of the training lines.")
    overlaps: int = Field(description="Number of all overlaps; a test row may occur several times.")


def find_overlap(
    train: Path,
    test: Path,
    *,
    threshold: float = 0.8,
    text_of: Callable[[Row, RowFormat], str] = prompt_text,
    exact_only: bool = False,
    same_numbers: bool = False,
    limit: int = 100,
) -> OverlapReport:
    """Compare the prompts of two files; the training set is read once.

    `exact_only` skips near matches and is about a hundred times faster. With `same_numbers`, texts that
    differ in a number do not match: they are different problems.

    The report contains the first `limit` overlaps. Raises ValueError for a file that `iter_rows` rejects, a
    row of an unknown format, or a test set of more than 50,000 rows.
    """
    index, lines_of, train_rows = NearDuplicateIndex(threshold, MAX_TEST_ROWS), dict[bytes, set[int]](), 0
    numbers_of: dict[int, list[str]] = {}
    for line, text in _texts(test, text_of):
        lines_of.setdefault(text_digest(text), set()).add(line)
        numbers_of[line] = find_numbers(text)
        if not exact_only and not index.add(line, text):
            raise ValueError(f"{test.name} has more than {MAX_TEST_ROWS:,} rows. Split it.")
    exact, met, first, overlaps = set[int](), set[int](), list[Overlap](), 0
    for line, text in _texts(train, text_of):
        train_rows += 1
        equal = lines_of.get(text_digest(text), set())
        found = [(number, 1.0) for number in sorted(equal)] if exact_only else index.matches(text)
        if same_numbers:
            numbers = find_numbers(text)
            found = [match for match in found if numbers_of[match[0]] == numbers]
        exact |= equal
        met.update(number for number, _ in found)
        overlaps += len(found)
        first += [
            Overlap(test_line=number, train_line=line, is_exact=number in equal, similarity=similarity)
            for number, similarity in found[: limit - len(first)]
        ]
    return OverlapReport(
        test_rows=len(numbers_of),
        train_rows=train_rows,
        exact_test_rows=len(exact),
        near_test_rows=len(met - exact),
        first=first,
        overlaps=overlaps,
    )


def find_numbers(text: str) -> list[str]:
    """Return the numbers in a text, in order; word problems that differ in one are different problems."""
    return re.findall(r"\d+", fold_text(text))


def _texts(path: Path, text_of: Callable[[Row, RowFormat], str]) -> Iterator[tuple[int, str]]:
    for line, row in iter_rows(path):
        row_format = detect_format(row)
        if row_format is None:
            raise ValueError(
                f"{path.name}, line {line}: the row's fields match no known format: rename them."
            )
        try:
            yield line, text_of(row, row_format)
        except ValueError as error:
            raise ValueError(f"{path.name}, line {line}: {error}") from error
