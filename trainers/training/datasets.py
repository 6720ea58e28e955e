"""Rendered rows as the datasets of TRL's trainers, without a copy in memory."""

from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
import numpy.typing as npt
from datasets import Dataset
from datasets.table import InMemoryTable
from trl import pack_dataset

from trainers.rendering.cache.folder import RowCache
from trainers.rendering.cache.mapped import Int32s, MappedRows, list_lengths


def map_dataset(
    mapped: MappedRows, columns: Sequence[str], trained: npt.NDArray[np.bool_] | None = None
) -> Dataset:
    """Return the trained rows with these columns, which stay in their file."""
    # With the fingerprint of the entry: `datasets` would compute one from all the data.
    table = InMemoryTable(mapped.table.select(columns))
    dataset = Dataset(table, fingerprint=f"{mapped.entry.name[:32]}-{'-'.join(columns)}")
    if trained is None or trained.all():
        return dataset
    return dataset.select(np.flatnonzero(trained))


def pack_rows(dataset: Dataset, mapped: MappedRows, max_length: int, cache: RowCache | None) -> Dataset:
    """Return sequences packed by best-fit decreasing (arXiv:2404.10830), in a file if there is a cache."""
    if cache is None:
        return pack_dataset(dataset, max_length, strategy="bfd")
    path = mapped.entry / f"packed-{version('trl')}.arrow"
    with cache.lock(mapped.entry.name):
        if not path.exists():
            temporary = path.with_suffix(".tmp")
            pack_dataset(dataset, max_length, strategy="bfd", map_kwargs={"cache_file_name": str(temporary)})
            temporary.replace(path)
    return Dataset.from_file(str(path))


def token_lengths(dataset: Dataset) -> Int32s:
    """Return the number of tokens of each row."""
    lengths = list_lengths(dataset.data.column("input_ids"))
    indices = dataset._indices
    return lengths if indices is None else lengths[indices.column(0).to_numpy()]
