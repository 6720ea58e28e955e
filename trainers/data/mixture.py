"""The file of a mixture: rows of several files, interleaved evenly.

Which rows are chosen and their order depend on the files, the shares and the seed alone. Any part of the file
has nearly the proportions of the whole.
"""

import heapq
import math
import random
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel, Field

from trainers.configs.base import DatasetShare
from trainers.data.faults import Fault
from trainers.data.files.file_checks import empty_file_fault, find_file_fault
from trainers.data.files.json_line import RowParser
from trainers.data.files.jsonl import iter_lines


class MixedDataset(BaseModel):
    """What a mixture takes of one of its datasets."""

    position: int = Field(description="Position in the list of the stage's config, from 0.")
    sha256: str = Field(description="Hash of its file.")
    file_rows: int = Field(description="Rows of the file.")
    rows: int = Field(description="Rows in an epoch.")
    repeats: str | None = Field(description="How its rows are repeated; null if none is.")


class _Lines:
    """The offsets of the rows in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offsets, self.sizes, self.numbers = array("Q"), array("L"), array("L")
        parser = RowParser()
        with path.open("rb") as file:
            if fault := find_file_fault(file):
                raise ValueError(f"{path.name}: {fault.message}")
            for number, line in iter_lines(file):
                row = line if isinstance(line, Fault) else parser.parse(line)
                if isinstance(row, Fault):
                    raise ValueError(f"{path.name}, line {number}: {row.message}")
                if row is not None and isinstance(line, bytes):
                    self.offsets.append(file.tell() - len(line))
                    self.sizes.append(len(line))
                    self.numbers.append(number)
        if not self.offsets:
            raise ValueError(f"{path.name}: {empty_file_fault().message}")

    def __len__(self) -> int:
        return len(self.offsets)


def write_mixture(
    paths: Sequence[Path],
    shares: Sequence[DatasetShare],
    seed: int,
    target: Path,
    origins: Path,
) -> list[tuple[int, int]]:
    """Write the rows to `target`, and for each the file and its line to `origins`.

    Returns the rows of each file, and those taken of it. Raises ValueError for a file that is not JSONL.
    """
    sources = [_Lines(path) for path in paths]
    counts = count_shares(shares, list(map(len, sources)))
    chosen = [
        _choose(len(source), n, f"{seed}/{i}")
        for i, (source, n) in enumerate(zip(sources, counts, strict=True))
    ]
    files = [path.open("rb") for path in paths]
    try:
        with target.open("wb") as output, origins.open("wb") as places:
            for index, position in _interleave(counts):
                source, row = sources[index], chosen[index][position]
                files[index].seek(source.offsets[row])
                output.write(files[index].read(source.sizes[row]).rstrip(b"\r\n") + b"\n")
                array("L", [index, source.numbers[row]]).tofile(places)
    finally:
        for file in files:
            file.close()
    return [(len(source), count) for source, count in zip(sources, counts, strict=True)]


def count_shares(shares: Sequence[DatasetShare], sizes: Sequence[int]) -> list[int]:
    """Return the rows of each dataset in an epoch, for datasets of these numbers of rows.

    The weights are scaled so that the dataset that is used up first is used once.
    """
    weighted = [size / share.weight for share, size in zip(shares, sizes, strict=True) if share.weight]
    scale = min(weighted, default=0.0)
    return [
        share.rows or (max(1, math.floor(scale * share.weight + 1e-9)) if share.weight else size)
        for share, size in zip(shares, sizes, strict=True)
    ]


def describe_repeats(rows: int, size: int) -> str | None:
    """Return how the rows of a file of `size` rows are repeated; None if none is."""
    if rows <= size:
        return None
    whole, rest = divmod(rows, size)
    times = "once" if whole == 1 else f"{whole} times"
    return f"each of {size} rows {times}" + (f", and {rest} of them once more" if rest else "")


def find_origin(origins: Path, line: int) -> tuple[int, int]:
    """Return the file, by its position in the mixture, and the line that a line of the mixture comes from."""
    place = array("L")
    with origins.open("rb") as file:
        file.seek((line - 1) * 2 * place.itemsize)
        place.fromfile(file, 2)
    return place[0], place[1]


def _choose(size: int, count: int, seed: str) -> "array[int]":
    """Return `count` rows of a file in the order of the file, pass after pass if there are not as many."""
    rows = array("L")
    while count - len(rows) >= size:
        rows.extend(range(size))
    rest = count - len(rows)
    rng = random.Random(seed)  # noqa: S311  # Not for secrets.
    rows.extend(sorted(rng.sample(range(size), rest)))
    return rows


def _interleave(counts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield (file, position) so that the rows of each file are evenly spaced."""
    heap = [(0.5 / count, index, 0) for index, count in enumerate(counts)]
    heapq.heapify(heap)
    while heap:
        _, index, position = heapq.heappop(heap)
        yield index, position
        if position + 1 < counts[index]:
            heapq.heappush(heap, ((position + 1.5) / counts[index], index, position + 1))
