"""Train, validation and test parts of a file, by a seeded hash of each row's content.

The part of a row depends on its hash, not on its position in the file, so equal rows are in the same part.
With shares, a row also stays in its part when other rows are added or removed, and sizes are approximate.
With numbers of rows, sizes are exact except for equal rows, and a row may change its part when others are
added or removed.
"""

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, Field

from trainers.configs.base import DatasetPart
from trainers.data.files.jsonl import iter_rows, save_rows
from trainers.data.fingerprint import fingerprint
from trainers.data.formats import Row

HASHES: Final = 2**64


class SplitReport(BaseModel):
    """Number of rows in each part."""

    seed: int = Field(description="Seed of the hash.")
    rows: dict[DatasetPart, int] = Field(
        description="Number of rows by part; parts that were not requested are missing."
    )
    distinct_rows: dict[DatasetPart, int] = Field(description="Number of different rows by part.")


def split_file(
    path: Path,
    folder: Path,
    *,
    validation: float = 0,
    test: float = 0,
    seed: int = 0,
    group_of: Callable[[Row], Any] = lambda row: row,
) -> SplitReport:
    """Write `train.jsonl` and, if requested, `validation.jsonl` and `test.jsonl`, in the file's order.

    `validation` and `test` are shares of the rows below 1, or whole numbers of rows; the other rows are for
    training. Rows with equal results of `group_of` are in the same part. Reads the file once per part and
    once more; uses 8 bytes of memory per row. Raises ValueError if a part would be empty.
    """
    hashes = array("Q", (fingerprint(group_of(row), seed) for _, row in iter_rows(path)))
    asked = {DatasetPart.test: test, DatasetPart.validation: validation}
    parts = _parts(hashes, {part: size for part, size in asked.items() if size}, path.name)
    folder.mkdir(parents=True, exist_ok=True)
    ordered = [part for part in DatasetPart if part in parts]
    rows = {
        part: save_rows(folder / f"{part}.jsonl", _rows_between(path, hashes, parts[part]))
        for part in ordered
    }
    distinct = {part: len({value for value in hashes if value in parts[part]}) for part in ordered}
    return SplitReport(seed=seed, rows=rows, distinct_rows=distinct)


def _parts(hashes: Sequence[int], asked: dict[DatasetPart, float], name: str) -> dict[DatasetPart, range]:
    # Each part is a range of hashes: held-out parts from 0 upwards, training above them.
    ordered, parts, start = sorted(hashes), dict[DatasetPart, range](), 0
    for part, size in asked.items():
        if size < 0 or (size >= 1 and size != int(size)):
            raise ValueError(f"`{part}` is {size}: set a share from 0 to 1, or a whole number of rows.")
        if size < 1:
            end = start + int(size * HASHES)
        else:
            taken = bisect_left(ordered, start) + int(size)
            end = ordered[taken - 1] + 1 if taken <= len(ordered) else HASHES
        parts[part], start = range(start, min(end, HASHES)), end
    parts[DatasetPart.train] = range(min(start, HASHES), HASHES)
    for part, hashes_of_part in parts.items():
        if not any(map(hashes_of_part.__contains__, hashes)):
            raise ValueError(
                f"The part `{part}` of the {len(hashes)} rows of {name} would be empty: set the held-out "
                "parts to numbers of rows that leave some for training."
            )
    return parts


def _rows_between(path: Path, hashes: Sequence[int], wanted: range) -> Iterator[Row]:
    return (row for (_, row), value in zip(iter_rows(path), hashes, strict=True) if value in wanted)
