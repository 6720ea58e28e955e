"""What artifact stores exchange, and the operations of a remote one. Paths begin with the root of its URL."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Protocol


@dataclass(frozen=True)
class PublishedArtifact:
    """The key, hash and size of a published artifact."""

    key: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class StoredEntry:
    """A file or folder in the store; `changed_at` is None where the store keeps no time for it."""

    key: str
    changed_at: float | None


class StoreFiles(Protocol):
    """Files in a remote store. Each operation raises OSError, FileNotFoundError for a file that is absent."""

    def upload(self, source: Path, destination: str, *, replace: bool = False) -> str:
        """Store a file, and return the SHA-256 of the bytes that were read from it.

        A store that can refuse to overwrite raises ArtifactExists for other content, without `replace`.
        """

    def download(self, source: str, destination: Path) -> str:
        """Write a stored file to a local path, and return the SHA-256 of its bytes."""

    def open(self, path: str, mode: str = "rb") -> BinaryIO:
        """Open a file for reading, from its start or after a `seek`."""

    def cat_file(self, path: str) -> bytes:
        """Return the content of a small file."""

    def pipe_file(self, path: str, content: bytes) -> None:
        """Write a small file, in place of one that exists."""

    def cp_file(self, source: str, destination: str) -> None:
        """Copy a file within the store."""

    def size(self, path: str) -> int:
        """Return the size of a file in bytes."""

    def exists(self, path: str) -> bool:
        """Return whether there is a file, or a folder with files."""

    def ls(self, path: str, *, detail: bool = True, refresh: bool = True) -> list[dict[str, Any]]:
        """Return the files and folders directly in a folder; FileNotFoundError if there are none."""

    def find(self, path: str, *, detail: bool = True) -> dict[str, dict[str, Any]]:
        """Return all files below a folder, by path, with `size` and a time of change."""

    def rm(self, path: str, *, recursive: bool = False) -> None:
        """Delete a file, or a folder with `recursive`."""

    def rm_file(self, path: str) -> None:
        """Delete a file."""


def change_time(entry: dict[str, Any]) -> float | None:
    """Return the time of a listed entry: a number, a datetime, or nothing for a folder of S3."""
    names = ("mtime", "LastModified", "last_modified", "created")
    found = next((entry[name] for name in names if entry.get(name) is not None), None)
    return found.timestamp() if isinstance(found, datetime) else found
