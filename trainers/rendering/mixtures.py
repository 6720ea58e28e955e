"""Mixtures of datasets, written to one file that the rest of a stage reads like any other dataset."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from trainers.configs.base import DatasetShare
from trainers.data.mixture import MixedDataset, describe_repeats, find_origin, write_mixture
from trainers.rendering.cache.folder import META, MIXTURE, RowCache
from trainers.rendering.cache.spec import code_version, hash_values
from trainers.rendering.plain_text import TemplateMissing
from trainers.rendering.render import dataset_path, require_file
from trainers.runtime import run_dir as files
from trainers.runtime.errors import DatasetInvalid
from trainers.runtime.verified_files import hash_file

ORIGINS = "origins.bin"
# A row in the message of an error: of the mixture, or of a file that is not named.
_ROW = re.compile(rf"\b([Rr]ow (\d+))\b(?: of \S*{re.escape(MIXTURE)}|(?! of ))")

C = TypeVar("C", bound=BaseModel)


def has_mixture(config: BaseModel) -> bool:
    """Return whether a stage, or the stage that a preflight checks, trains on a mixture."""
    return isinstance(getattr(getattr(config, "target", config), "dataset", None), list)


def mix_datasets(config: C, cache: RowCache) -> tuple[C, list[MixedDataset]]:
    """Return the config with the file of its mixture as its dataset, and what is in it.

    Raises DatasetFileNotFound or DatasetInvalid.
    """
    stage: Any = getattr(config, "target", config)
    shares: list[DatasetShare] = stage.dataset
    paths = [dataset_path(share.dataset) for share in shares]
    for path in paths:
        require_file(path)
    hashes = [hash_file(path) for path in paths]
    for position, sha256 in enumerate(hashes):
        if sha256 in hashes[:position]:
            raise DatasetInvalid(
                f"Datasets {hashes.index(sha256) + 1} and {position + 1} of the mixture have the same rows.",
                "Give the dataset one entry, with more `rows` to repeat it.",
            )
    amounts = [[share.weight, share.rows] for share in shares]

    def build(folder: Path) -> None:
        try:
            counts = write_mixture(paths, shares, stage.seed, folder / MIXTURE, folder / ORIGINS)
        except ValueError as error:
            raise DatasetInvalid(f"The mixture cannot be made: {error}.", "Correct that dataset.") from error
        mixed = [
            MixedDataset(
                position=position,
                sha256=sha256,
                file_rows=size,
                rows=rows,
                repeats=describe_repeats(rows, size),
            ).model_dump()
            for position, (sha256, (size, rows)) in enumerate(zip(hashes, counts, strict=True))
        ]
        files.write_json(folder / META, {"datasets": hashes, "mixture": mixed})

    entry = cache.fetch(hash_values(["mixture", hashes, amounts, stage.seed, code_version()]), build)
    meta = files.read_json(entry / META)
    assert meta is not None, "an entry is complete"
    changed = stage.model_copy(update={"dataset": str(entry / MIXTURE)})
    mixed = [MixedDataset.model_validate(each) for each in meta["mixture"]]
    return changed if stage is config else config.model_copy(update={"target": changed}), mixed


def describe_origin(dataset: Path, line: int) -> str | None:
    """Return where a line of a mixture comes from; None for any other dataset."""
    origins = dataset.with_name(ORIGINS)
    if dataset.name != MIXTURE or not origins.is_file():
        return None
    position, original = find_origin(origins, line)
    return f"line {original} of dataset {position + 1} of the mixture"


@contextmanager
def name_origins(config: BaseModel) -> Iterator[None]:
    """Name in an error about a row of a mixture the dataset and the line that it comes from."""
    try:
        yield
    except (DatasetInvalid, TemplateMissing) as error:
        stage = getattr(config, "target", config)
        dataset, match = getattr(stage, "dataset", None), _ROW.search(error.message)
        if match and MIXTURE not in match[0] and getattr(stage, "validation_dataset", None) is not None:
            match = None  # The row may be one of the validation rows.
        origin = describe_origin(Path(dataset), int(match[2])) if match and isinstance(dataset, str) else None
        if origin is not None:
            error.message = _ROW.sub(rf"\1 ({origin})", error.message, count=1)
        raise
