"""Readers of the sources of a `prepare` stage, one row or sentence pair at a time."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from trainers.configs.sources import AlignedSource, HubSource, JsonlSource, Source, TmxSource, TsvSource
from trainers.data.files.aligned import TranslationPair, parse_pairs, read_aligned, read_tsv
from trainers.data.files.tmx import read_tmx
from trainers.data.filters.drops import DropRecorder
from trainers.data.formats import Row
from trainers.data.hub_files import list_data_files, read_readme, select_data_files
from trainers.rendering.render import read_rows
from trainers.runtime.errors import DatasetFileNotFound


def read_sentence_pairs(source: Source, drops: DropRecorder) -> Iterable[TranslationPair]:
    """Return Korean-English pairs.

    Raises DatasetFileNotFound, and ValueError naming a line that cannot be read.
    """
    for path in source.paths:
        if not Path(path).exists():
            raise DatasetFileNotFound(f"The source {path} does not exist on this host.", "Check the path.")
    match source:
        case AlignedSource():
            return read_aligned(Path(source.korean), Path(source.english))
        case TsvSource():
            return read_tsv(Path(source.path), korean=source.korean_column, english=source.english_column)
        case TmxSource():
            return read_tmx(Path(source.path), drops)
        case JsonlSource() | HubSource():
            rows = (row for _, row in read_source_rows(source))
            return parse_pairs(rows, korean=source.korean_field, english=source.english_field)


def read_source_rows(source: Source) -> Iterator[tuple[int, Row]]:
    """Return rows with their numbers, from 1; raises DatasetFileNotFound or DatasetInvalid."""
    if isinstance(source, HubSource):
        return _hub_rows(source)
    assert isinstance(source, JsonlSource), "the config requires a recipe for other kinds"
    return read_rows(Path(source.path))


def _hub_rows(source: HubSource) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a folder in the hub's layout, which is downloaded first if the name is a hub id.

    The reader gets absolute paths of files that this function has chosen, and nothing that it could resolve.
    """
    # The import takes seconds, which other sources need not spend.
    from datasets import load_dataset

    folder = Path(source.name)
    if not folder.is_dir():
        if source.paths:
            raise DatasetFileNotFound(f"The folder {folder} does not exist on this host.", "Check the path.")
        from trainers.modeling.hub import download_dataset

        folder = Path(download_dataset(source.name, source.revision, source.subset, source.split).folder)
    try:
        reader, names = select_data_files(
            list_data_files(folder), read_readme(folder), source.subset, source.split
        )
        rows = load_dataset(
            reader,
            data_files=[str(folder.absolute() / name) for name in names],
            split="train",
            streaming=True,
        )
    except (FileNotFoundError, ValueError) as error:
        raise DatasetFileNotFound(
            f"The data set {source.name} cannot be read: {str(error).splitlines()[0]}",
            "Check the name, subset and split.",
        ) from error
    yield from enumerate(rows, start=1)
