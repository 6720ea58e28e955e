"""The rows of an entry, mapped into memory: an example is read when it is used."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from trainers.rendering.cache.build import ROWS
from trainers.rendering.cache.folder import META
from trainers.rendering.omissions.counts import OmissionCounts
from trainers.runtime import run_dir as files

T = TypeVar("T")
Int32s: TypeAlias = npt.NDArray[np.int32]
# Rows that are converted to Python objects at a time.
CHUNK_ROWS = 256


class MappedRows:
    """The table of an entry, and what was found when it was built."""

    def __init__(self, entry: Path) -> None:
        self.entry = entry
        self.path = entry / ROWS
        self.meta = files.read_json(entry / META) or {}
        with pa.memory_map(str(self.path)) as source, pa.ipc.open_stream(source) as reader:
            self.table: pa.Table = reader.read_all()

    @cached_property
    def rows(self) -> int:
        """The number of rows of the dataset."""
        return int(self.meta["rows"])

    @property
    def omissions(self) -> OmissionCounts:
        """What the template leaves out of the rows."""
        return OmissionCounts.from_json(self.meta["omissions"])

    def column(self, name: str) -> npt.NDArray[Any]:
        """Return a column of numbers."""
        values: npt.NDArray[Any] = self.table[name].to_numpy()
        return values

    def lengths(self, name: str) -> Int32s:
        """Return the number of tokens in each row of a column of tokens."""
        return list_lengths(self.table[name])


class MappedSequence(Sequence[T], Generic[T]):
    """Rows of a table as objects, each of which is made from its values when it is used."""

    def __init__(self, table: pa.Table, make: Callable[[dict[str, Any]], T]) -> None:
        self._table, self._make = table, make

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._make(self._table.slice(index % len(self), 1).to_pylist()[0])

    def __iter__(self) -> Iterator[T]:
        for start in range(0, len(self), CHUNK_ROWS):
            for values in self._table.slice(start, CHUNK_ROWS).to_pylist():
                yield self._make(values)


def list_lengths(column: pa.ChunkedArray) -> Int32s:
    """Return the length of each list of a column."""
    lengths: Int32s = pc.list_value_length(column).to_numpy()
    return lengths
