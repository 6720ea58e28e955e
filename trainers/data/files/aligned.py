"""Korean-English sentence pairs from two aligned files, from TSV, or from rows of a data set.

Only a line feed ends a line: Python's `splitlines` also splits at characters such as U+2028, which occur
within sentences, and would misalign every later pair.
"""

from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from trainers.data.faults import Fault
from trainers.data.files.jsonl import iter_lines


class TranslationPair(NamedTuple):
    """A sentence in both languages, with its line in the file."""

    line: int
    korean: str
    english: str


def read_aligned(korean: Path, english: Path) -> Iterator[TranslationPair]:
    """Yield the lines of two files as pairs; raises ValueError if one is longer or a line is not UTF-8."""
    for left, right in zip_longest(_texts(korean), _texts(english)):
        if left is None or right is None:
            line = (left or right)[0]
            shorter, longer = (korean, english) if left is None else (english, korean)
            raise ValueError(
                f"{shorter.name} ends before line {line} of {longer.name}: the files are not aligned. "
                "Use both files from the same release."
            )
        yield TranslationPair(left[0], left[1], right[1])


def read_tsv(path: Path, *, korean: int | str = 1, english: int | str = 2) -> Iterator[TranslationPair]:
    """Yield pairs from two columns of tab-separated values; quotes have no special meaning.

    A column is a number from 1, or a name in the first line. Raises ValueError naming the line with too few
    columns, or the missing name.
    """
    lines = _texts(path)
    header: list[str] = []
    if isinstance(korean, str) or isinstance(english, str):
        header = next(lines, (1, ""))[1].split("\t")
    left, right = _column(korean, header, path), _column(english, header, path)
    for line, text in lines:
        fields = text.split("\t")
        if len(fields) < max(left, right):
            raise ValueError(
                f"{path.name}, line {line}: column {max(left, right)} is missing, the line has "
                f"{len(fields)}. Use "
                "one tab between columns, and none within a sentence."
            )
        yield TranslationPair(line, fields[left - 1], fields[right - 1])


def parse_pairs(
    rows: Iterable[dict[str, Any]], *, korean: str = "ko", english: str = "en"
) -> Iterator[TranslationPair]:
    """Yield pairs from rows with a field for each language, at the top or in `translation`, as on the hub.

    Raises ValueError naming the row, from 1, and the field that is missing or not a string.
    """
    for number, row in enumerate(rows, start=1):
        texts = row.get("translation", row)
        for field in (korean, english):
            if not isinstance(texts, dict) or not isinstance(texts.get(field), str):
                raise ValueError(f"Row {number} has no text in `{field}`: set the names of both fields.")
        yield TranslationPair(number, texts[korean], texts[english])


def _texts(path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as file:
        for number, line in iter_lines(file):
            if isinstance(line, Fault):
                raise ValueError(f"{path.name}, line {number}: {line.message}")
            try:
                yield number, line.rstrip(b"\r\n").decode()
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path.name}, line {number}: byte {error.start + 1} is not UTF-8. Save the file as "
                    "UTF-8."
                ) from error


def _column(column: int | str, header: list[str], path: Path) -> int:
    if isinstance(column, int):
        if column < 1:
            raise ValueError(f"Column {column} does not exist: columns are numbered from 1.")
        return column
    if column not in header:
        raise ValueError(
            f"{path.name} has no column {column!r}; its columns are {', '.join(map(repr, header))}."
        )
    return header.index(column) + 1
