"""The rows of an evaluation as a file, and an index by which single rows are read without the others.

`rows.jsonl` has a line for each row, with its prompt, its reference, and each model's responses and values.
`index.jsonl` has a line for each row as well, with its position in that file and its values alone: rows are
filtered and ordered by it, and two evaluations are paired by it.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec

ROWS: Final = "rows.jsonl"
INDEX: Final = "index.jsonl"
# A page or a comparison reads no longer line.
MAX_LINE_BYTES: Final = 64 << 20


class ModelRow(msgspec.Struct):
    """A model's part of a row."""

    responses: list[str | None]
    """One for each sample; None where the engine rejected the request."""
    values: dict[str, float | None] = {}
    """By the name of the metric; None where the metric does not apply."""
    details: dict[str, dict[str, Any]] = {}
    """What metrics report of the row besides its values, by the name of the metric."""
    finish_reason: str | None = None
    """Why the first response ended; None for a response that existed already."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    tool_calls: list[dict[str, Any]] = []
    """Of the first response, in OpenAI's form."""


class StoredRow(msgspec.Struct):
    """A line of `rows.jsonl`."""

    row: int
    prompt: list[dict[str, Any]]
    reference: str
    models: dict[str, ModelRow]
    fields: dict[str, Any] = {}


class IndexedRow(msgspec.Struct, gc=False):
    """A line of `index.jsonl`."""

    row: int
    key: str
    """Hash of prompt and reference: rows of two evaluations with the same key are the same question."""
    offset: int
    size_bytes: int
    values: dict[str, dict[str, float | None]]
    """By the role of the model and the name of the metric."""
    failed: list[str] = []
    """Roles of the models that have no response."""

    def value(self, role: str, metric: str) -> float | None:
        """Return a model's value, or None without one."""
        return self.values.get(role, {}).get(metric)


_ROW: Final = msgspec.json.Decoder(StoredRow)
_INDEXED: Final = msgspec.json.Decoder(IndexedRow)


def hash_row(prompt: list[dict[str, Any]], reference: str) -> str:
    """Return the hash by which equal rows of two evaluations are found."""
    text = json.dumps([prompt, reference], ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    # 32 digits: 2^64 rows would have a collision.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def write_index(rows: Path, index: Path) -> None:
    """Write the index of a file of rows."""
    with rows.open("rb") as source, index.open("wb") as file:
        offset = 0
        for line in source:
            stored = _ROW.decode(line)
            key = hash_row(stored.prompt, stored.reference)
            values = {role: model.values for role, model in stored.models.items()}
            failed = [role for role, model in stored.models.items() if None in model.responses]
            indexed = IndexedRow(stored.row, key, offset, len(line), values, failed)
            file.write(msgspec.json.encode(indexed) + b"\n")
            offset += len(line)


def hash_keys(index: Path) -> str:
    """Return the hash of all prompts and references in order; raises as `read_index`."""
    digest = hashlib.sha256()
    for row in read_index(index):
        digest.update(row.key.encode())
    return digest.hexdigest()


def read_index(path: Path) -> Iterator[IndexedRow]:
    """Yield the lines of an index; raises `msgspec.MsgspecError` for one that is not of this form."""
    with path.open("rb") as file:
        for line in _iter_lines(file):
            yield _INDEXED.decode(line)


def iter_stored_rows(path: Path) -> Iterator[StoredRow]:
    """Yield the rows of a file; raises `msgspec.MsgspecError` for one that is not of this form."""
    with path.open("rb") as file:
        for line in _iter_lines(file):
            yield _ROW.decode(line)


def read_stored_rows(path: Path, indexed: Iterable[IndexedRow]) -> list[StoredRow]:
    """Read single rows by their index; raises `msgspec.MsgspecError` if there is none at a position."""
    with path.open("rb") as file:
        return [_read_row(file, row) for row in indexed]


def _read_row(file: BinaryIO, row: IndexedRow) -> StoredRow:
    file.seek(max(0, row.offset))
    return _ROW.decode(file.read(min(max(0, row.size_bytes), MAX_LINE_BYTES)))


def _iter_lines(file: BinaryIO) -> Iterator[bytes]:
    while line := file.readline(MAX_LINE_BYTES):
        yield line
