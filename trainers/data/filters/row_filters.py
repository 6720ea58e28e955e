"""Filters of numbered rows by length and by exact repetition; they chain, and read one row at a time."""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from trainers.data.filters.drops import DropReason, DropRecorder
from trainers.data.fingerprint import content_digest, row_text
from trainers.data.formats import Row, RowFormat

NumberedRows = Iterable[tuple[int, Row]]

# A remembered row takes about 150 bytes: a digest of 16, a line number, and their places in a dictionary.
MAX_REMEMBERED_ROWS: Final = 2_000_000


def filter_by_characters(
    rows: NumberedRows,
    drops: DropRecorder,
    row_format: RowFormat,
    *,
    minimum: int = 0,
    maximum: int | None = None,
) -> Iterator[tuple[int, Row]]:
    """Keeps rows of `minimum` to `maximum` characters, both inclusive, over all their turns."""
    return _by_length(rows, drops, lambda row: len(row_text(row, row_format)), minimum, maximum, "characters")


def filter_by_tokens(
    rows: NumberedRows,
    drops: DropRecorder,
    count_tokens: Callable[[Row], int],
    *,
    minimum: int = 0,
    maximum: int | None = None,
) -> Iterator[tuple[int, Row]]:
    """Keeps rows of `minimum` to `maximum` tokens, both inclusive, as `count_tokens` counts them."""
    return _by_length(rows, drops, count_tokens, minimum, maximum, "tokens")


def drop_duplicates(
    rows: NumberedRows,
    drops: DropRecorder,
    row_format: RowFormat,
    *,
    max_remembered: int = MAX_REMEMBERED_ROWS,
) -> Iterator[tuple[int, Row]]:
    """Keeps the first of all rows that train a model alike, whatever their other fields.

    The first `max_remembered` different rows are compared with, at about 150 bytes each; the report says how
    many came after them.
    """
    first_lines: dict[bytes, int] = {}
    for line, row in rows:
        digest = content_digest(row, row_format)
        if (first := first_lines.get(digest)) is not None:
            drops.add(line, DropReason.duplicate, f"The row says the same as line {first}.")
            continue
        if len(first_lines) < max_remembered:
            first_lines[digest] = line
        else:
            drops.not_remembered += 1
        yield line, row


def _by_length(
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
            drops.add(line, DropReason.too_short, f"The row has {length:,} {unit}, below {minimum:,}.")
        elif maximum is not None and length > maximum:
            drops.add(line, DropReason.too_long, f"The row has {length:,} {unit}, above {maximum:,}.")
        else:
            yield line, row
