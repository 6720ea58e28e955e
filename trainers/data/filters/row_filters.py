"""Filters of numbered rows by length and for exact duplicates. They can be chained."""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from trainers.data.filters.drops import DropReason, DropRecorder
from trainers.data.fingerprint import content_digest, row_text
from trainers.data.formats import Row, RowFormat

NumberedRows = Iterable[tuple[int, Row]]

# A row uses about 150 bytes of memory: a digest of 16, a line number, and an entry in a dictionary.
MAX_REMEMBERED_ROWS: Final = 2_000_000


def filter_by_characters(
    rows: NumberedRows,
    drops: DropRecorder,
    row_format: RowFormat,
    *,
    minimum: int = 0,
    maximum: int | None = None,
) -> Iterator[tuple[int, Row]]:
    """Yield the rows with `minimum` to `maximum` characters, inclusive, over all their messages."""
    return _filter_by_length(
        rows, drops, lambda row: len(row_text(row, row_format)), minimum, maximum, "characters"
    )


def filter_by_tokens(
    rows: NumberedRows,
    drops: DropRecorder,
    count_tokens: Callable[[Row], int],
    *,
    minimum: int = 0,
    maximum: int | None = None,
) -> Iterator[tuple[int, Row]]:
    """Yield the rows with `minimum` to `maximum` tokens, inclusive, as counted by `count_tokens`."""
    return _filter_by_length(rows, drops, count_tokens, minimum, maximum, "tokens")


def drop_duplicates(
    rows: NumberedRows,
    drops: DropRecorder,
    row_format: RowFormat,
    *,
    max_remembered: int = MAX_REMEMBERED_ROWS,
) -> Iterator[tuple[int, Row]]:
    """Yield the first of several rows with the same effect in training, whatever their other fields.

    Rows are compared with the first `max_remembered` different rows, which use about 150 bytes each; the
    report counts the rows after them.
    """
    first_lines: dict[bytes, int] = {}
    for line, row in rows:
        digest = content_digest(row, row_format)
        if (first := first_lines.get(digest)) is not None:
            drops.add(line, DropReason.duplicate, f"The row has the same content as line {first}.")
            continue
        if len(first_lines) < max_remembered:
            first_lines[digest] = line
        else:
            drops.not_remembered += 1
        yield line, row


def _filter_by_length(
    rows: NumberedRows,
    drops: DropRecorder,
    measure: Callable[[Row], int],
    minimum: int,
    maximum: int | None,
    unit: str,
) -> Iterator[tuple[int, Row]]:
    for line, row in rows:
        length = measure(row)
        if length < minimum:
            drops.add(
                line, DropReason.too_short, f"The row has {length:,} {unit}; the minimum is {minimum:,}."
            )
        elif maximum is not None and length > maximum:
            drops.add(
                line, DropReason.too_long, f"The row has {length:,} {unit}; the maximum is {maximum:,}."
            )
        else:
            yield line, row
