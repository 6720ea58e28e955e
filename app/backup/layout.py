"""The layout of a backup directory.

DIR/artifacts/KEY                    files of artifacts, shared by all snapshots
DIR/snapshots/TIME/tables/NAME.jsonl the rows of each table
DIR/snapshots/TIME/artifacts.jsonl   path, size and SHA-256 of each file that the rows name
DIR/snapshots/TIME/backup.json       written last: a snapshot without it is incomplete
"""

import fcntl
import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pydantic import BaseModel, Field

from app.storage.local_files import CHUNK_BYTES, fsync_file

FORMAT = 1
ARTIFACTS = "artifacts"
SNAPSHOTS = "snapshots"
TABLES = "tables"
FILES = "artifacts.jsonl"
SUMMARY = "backup.json"
LOCK = "backup.lock"


class BackupFailed(Exception):
    """A backup that cannot be written or restored; the message is a sentence for the operator."""


class StoredTable(BaseModel):
    """A table of a snapshot."""

    rows: int
    sha256: str


class BackedUpFile(BaseModel):
    """A file of an artifact; `path` is its key in the store."""

    path: str
    size_bytes: int
    sha256: str


class Snapshot(BaseModel):
    """The content of `backup.json`."""

    format: int = FORMAT
    created_at: str
    version: str
    revision: str
    installation_id: str
    tables: dict[str, StoredTable]
    files_sha256: str
    n_files: int
    size_bytes: int
    unreadable: list[str] = Field(
        default_factory=list, description="Artifacts that the store had lost or damaged already."
    )


@contextmanager
def lock_directory(directory: Path) -> Iterator[None]:
    """Exclude a second backup into the same directory; raise BackupFailed if there is one."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BackupFailed(f"Another backup is being written into {directory}.") from error
        yield


def list_snapshots(directory: Path) -> list[Path]:
    """Return the complete snapshots of a directory, oldest first."""
    return sorted(path.parent for path in (directory / SNAPSHOTS).glob(f"*/{SUMMARY}"))


def load_snapshot(folder: Path) -> Snapshot:
    """Return the summary of a snapshot."""
    return Snapshot.model_validate_json((folder / SUMMARY).read_bytes())


def load_files(folder: Path) -> list[BackedUpFile]:
    """Return the files of a snapshot."""
    with (folder / FILES).open("rb") as lines:
        return [BackedUpFile.model_validate_json(line) for line in lines]


def write_lines(path: Path, values: Iterable[object]) -> tuple[int, str]:
    """Write JSON lines durably; return their number and the SHA-256 of the file."""
    digest, count = hashlib.sha256(), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for value in values:
            text = value.model_dump_json() if isinstance(value, BaseModel) else json.dumps(value)
            line = text.encode() + b"\n"
            digest.update(line)
            file.write(line)
            count += 1
        fsync_file(file)
    return count, digest.hexdigest()


def copy_stream(source: BinaryIO, destination: Path) -> BackedUpFile:
    """Copy a stream to a file that appears complete or not at all; return its size and hash.

    The file is not durable yet: one `os.sync` before the snapshot is published replaces one fsync per file.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = destination.with_name(f"{destination.name}.part")
    digest = hashlib.sha256()
    with partial.open("wb") as file:
        while chunk := source.read(CHUNK_BYTES):
            digest.update(chunk)
            file.write(chunk)
        size_bytes = file.tell()
    partial.replace(destination)
    return BackedUpFile(path=destination.name, size_bytes=size_bytes, sha256=digest.hexdigest())
