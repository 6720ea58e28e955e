"""The artifact store: files and folders published once, under a key, and never changed.

Order of publication: files, then the manifest with their hashes, then (on a local disk) the rename
that makes the folder appear, then the row. Readers follow rows only, so they never see half of one.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

import fsspec

from app.settings import get_settings

MANIFEST = ".manifest.json"
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class PublishedArtifact:
    """Where an artifact lies and what it is made of."""

    key: str
    sha256: str
    size_bytes: int


class ArtifactCorrupt(Exception):
    """A file of an artifact is missing or is not what its manifest says."""


class ArtifactStore:
    """Artifacts in any file system that fsspec knows."""

    def __init__(self, url: str) -> None:
        self.fs, root = fsspec.url_to_fs(url)
        self.root = root.rstrip("/")
        self.local = "file" in self.fs.protocol

    def publish_folder(self, folder: Path, key: str) -> PublishedArtifact:
        """Publish a folder's files and a manifest of their hashes; the hash answered is the manifest's."""
        files = [_describe(path, folder) for path in sorted(folder.rglob("*")) if _content(path, folder)]
        manifest = json.dumps({"files": files}, sort_keys=True).encode()
        destination = self._path(key)
        aside = f"{destination}.{secrets.token_hex(4)}.part" if self.local else destination
        with self._no_leftovers(aside):
            for file in files:
                self._put(folder / file["path"], f"{aside}/{file['path']}")
            self._write(manifest, f"{aside}/{MANIFEST}")
            if self.local:
                _rename_folder(Path(aside), Path(destination))
        return PublishedArtifact(
            key, hashlib.sha256(manifest).hexdigest(), sum(file["size_bytes"] for file in files)
        )

    def publish_file(self, path: Path, key: str) -> None:
        """Publish one file."""
        destination = self._path(key)
        aside = f"{destination}.{secrets.token_hex(4)}.part" if self.local else destination
        with self._no_leftovers(aside):
            self._put(path, aside)
            if self.local:
                Path(aside).replace(destination)
                _sync_folder(Path(destination).parent)

    def fetch_folder(self, key: str, sha256: str, cache: Path) -> Path:
        """The folder on this host, checked against its manifest; kept in the cache for the next time.

        Raises ArtifactCorrupt when a hash differs, FileNotFoundError when it is not there.
        """
        if self.local:
            return Path(self._path(key))
        destination = cache / sha256
        if not destination.exists():
            aside = destination.with_name(f"{sha256}.{secrets.token_hex(4)}.part")
            manifest = self.fs.cat_file(f"{self._path(key)}/{MANIFEST}")
            if hashlib.sha256(manifest).hexdigest() != sha256:
                raise ArtifactCorrupt(f"the manifest of {key} is not the one that was published")
            for file in json.loads(manifest)["files"]:
                self._get(f"{self._path(key)}/{file['path']}", aside / file["path"], file["sha256"])
            _rename_folder(aside, destination)
        return destination

    def fetch_file(self, key: str, sha256: str, cache: Path) -> Path:
        """The file on this host, checked against its hash; kept in the cache for the next time."""
        if self.local:
            return Path(self._path(key))
        destination = cache / sha256
        if not destination.exists():
            aside = destination.with_name(f"{sha256}.{secrets.token_hex(4)}.part")
            self._get(self._path(key), aside, sha256)
            aside.replace(destination)
        return destination

    def open(self, key: str) -> BinaryIO:
        """A published file, to be read."""
        return cast(BinaryIO, self.fs.open(self._path(key), "rb"))

    def exists(self, key: str) -> bool:
        """Whether something is published under the key."""
        return bool(self.fs.exists(self._path(key)))

    def delete(self, key: str) -> None:
        """Remove what is published under the key, if it is there."""
        path = self._path(key)
        if self.fs.exists(path):
            self.fs.rm(path, recursive=True)

    @contextmanager
    def _no_leftovers(self, aside: str) -> Iterator[None]:
        """Half of a publication would keep a full disk full."""
        try:
            yield
        except OSError:
            if self.local and self.fs.exists(aside):
                self.fs.rm(aside, recursive=True)
            raise

    def _path(self, key: str) -> str:
        parts = PurePosixPath(key).parts
        assert parts and ".." not in parts and not key.startswith("/"), key
        return f"{self.root}/{key}"

    def _put(self, source: Path, destination: str) -> None:
        if not self.local:
            self.fs.put_file(str(source), destination)
            return
        Path(destination).parent.mkdir(parents=True, exist_ok=True)
        with source.open("rb") as read, Path(destination).open("wb") as write:
            shutil.copyfileobj(read, write, CHUNK_BYTES)
            _sync(write)

    def _write(self, content: bytes, destination: str) -> None:
        if not self.local:
            self.fs.pipe_file(destination, content)
            return
        with Path(destination).open("wb") as write:
            write.write(content)
            _sync(write)

    def _get(self, source: str, destination: Path, sha256: str) -> None:
        destination.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with self.fs.open(source, "rb") as read, destination.open("wb") as write:
            while chunk := read.read(CHUNK_BYTES):
                digest.update(chunk)
                write.write(chunk)
        if digest.hexdigest() != sha256:
            raise ArtifactCorrupt(f"{source} is not what was published: its hash differs")


@lru_cache
def get_store() -> ArtifactStore:
    """The process's artifact store."""
    return ArtifactStore(get_settings().artifacts_url)


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _content(path: Path, folder: Path) -> bool:
    return path.is_file() and path.relative_to(folder) != Path(MANIFEST)


def _describe(path: Path, folder: Path) -> dict[str, Any]:
    return {
        "path": path.relative_to(folder).as_posix(),
        "size_bytes": path.stat().st_size,
        "sha256": hash_file(path),
    }


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _rename_folder(aside: Path, destination: Path) -> None:
    """Let a finished folder appear under its name; if another was there first, its content is the same."""
    for folder in [path for path in aside.rglob("*") if path.is_dir()]:
        _sync_folder(folder)
    try:
        aside.rename(destination)
    except OSError:
        if not destination.is_dir():
            raise
        shutil.rmtree(aside)
    _sync_folder(destination.parent)


def read_chunks(file: BinaryIO) -> Iterator[bytes]:
    """A file's content in pieces, closing it at the end."""
    with file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
