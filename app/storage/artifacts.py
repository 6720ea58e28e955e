"""The artifact store: immutable files and folders, each published once under a key.

Order of publication: files, then the manifest with their hashes, then (on a local disk) the rename to
the final name, then the row. Readers start from rows, so they never see a partial artifact.
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
    """The key, hash and size of a published artifact."""

    key: str
    sha256: str
    size_bytes: int


class ArtifactCorrupt(Exception):
    """A file of an artifact is missing or differs from its manifest."""


class ArtifactStore:
    """Artifacts in any file system that fsspec supports."""

    def __init__(self, url: str) -> None:
        self.fs, root = fsspec.url_to_fs(url)
        self.root = root.rstrip("/")
        self.local = "file" in self.fs.protocol

    def publish_folder(self, folder: Path, key: str) -> PublishedArtifact:
        """Publish a folder's files with a manifest of their hashes; return the manifest's hash."""
        files = [
            _manifest_entry(path, folder)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.relative_to(folder) != Path(MANIFEST)
        ]
        manifest = json.dumps({"files": files}, sort_keys=True).encode()
        destination = self._path(key)
        staging = f"{destination}.{secrets.token_hex(4)}.part" if self.local else destination
        with self._cleanup_on_failure(staging):
            for file in files:
                self._put(folder / file["path"], f"{staging}/{file['path']}")
            self._write(manifest, f"{staging}/{MANIFEST}")
            if self.local:
                _rename_folder(Path(staging), Path(destination))
        return PublishedArtifact(
            key, hashlib.sha256(manifest).hexdigest(), sum(file["size_bytes"] for file in files)
        )

    def publish_file(self, path: Path, key: str) -> None:
        """Publish one file."""
        destination = self._path(key)
        staging = f"{destination}.{secrets.token_hex(4)}.part" if self.local else destination
        with self._cleanup_on_failure(staging):
            self._put(path, staging)
            if self.local:
                Path(staging).replace(destination)
                _fsync_folder(Path(destination).parent)

    def fetch_folder(self, key: str, sha256: str, cache: Path) -> Path:
        """Return the folder on this host, from the cache or verified against its manifest.

        Raises:
            ArtifactCorrupt: A hash differs.
            FileNotFoundError: Nothing is published under the key.
        """
        if self.local:
            return Path(self._path(key))
        destination = cache / sha256
        if not destination.exists():
            staging = destination.with_name(f"{sha256}.{secrets.token_hex(4)}.part")
            manifest = self.fs.cat_file(f"{self._path(key)}/{MANIFEST}")
            if hashlib.sha256(manifest).hexdigest() != sha256:
                raise ArtifactCorrupt(f"The manifest of {key} has another SHA-256 than the published one.")
            for file in json.loads(manifest)["files"]:
                self._get(f"{self._path(key)}/{file['path']}", staging / file["path"], file["sha256"])
            _rename_folder(staging, destination)
        return destination

    def fetch_file(self, key: str, sha256: str, cache: Path) -> Path:
        """Return the file on this host, from the cache or verified against its hash.

        Raises:
            ArtifactCorrupt: The hash differs.
            FileNotFoundError: Nothing is published under the key.
        """
        if self.local:
            return Path(self._path(key))
        destination = cache / sha256
        if not destination.exists():
            staging = destination.with_name(f"{sha256}.{secrets.token_hex(4)}.part")
            self._get(self._path(key), staging, sha256)
            staging.replace(destination)
        return destination

    def open(self, key: str) -> BinaryIO:
        """Open a published file for reading."""
        return cast(BinaryIO, self.fs.open(self._path(key), "rb"))

    def exists(self, key: str) -> bool:
        """Return whether something is published under the key."""
        return bool(self.fs.exists(self._path(key)))

    def delete(self, key: str) -> None:
        """Delete the artifact under the key, if it exists."""
        path = self._path(key)
        if self.fs.exists(path):
            self.fs.rm(path, recursive=True)

    @contextmanager
    def _cleanup_on_failure(self, staging: str) -> Iterator[None]:
        """Remove a partial publication, which would keep a full disk full."""
        try:
            yield
        except OSError:
            if self.local and self.fs.exists(staging):
                self.fs.rm(staging, recursive=True)
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
            _fsync_file(write)

    def _write(self, content: bytes, destination: str) -> None:
        if not self.local:
            self.fs.pipe_file(destination, content)
            return
        with Path(destination).open("wb") as write:
            write.write(content)
            _fsync_file(write)

    def _get(self, source: str, destination: Path, sha256: str) -> None:
        destination.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with self.fs.open(source, "rb") as read, destination.open("wb") as write:
            while chunk := read.read(CHUNK_BYTES):
                digest.update(chunk)
                write.write(chunk)
        if digest.hexdigest() != sha256:
            raise ArtifactCorrupt(f"{source} has another SHA-256 than the published file.")


@lru_cache
def get_store() -> ArtifactStore:
    """Return the process's artifact store."""
    return ArtifactStore(get_settings().artifacts_url)


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_chunks(file: BinaryIO) -> Iterator[bytes]:
    """Yield a file's content in chunks of `CHUNK_BYTES`, then close the file."""
    with file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _manifest_entry(path: Path, folder: Path) -> dict[str, Any]:
    return {
        "path": path.relative_to(folder).as_posix(),
        "size_bytes": path.stat().st_size,
        "sha256": hash_file(path),
    }


def _fsync_file(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _rename_folder(staging: Path, destination: Path) -> None:
    """Move a complete folder to its final name.

    A folder that another process published first has the same content.
    """
    for folder in [path for path in staging.rglob("*") if path.is_dir()]:
        _fsync_folder(folder)
    try:
        staging.rename(destination)
    except OSError:
        if not destination.is_dir():
            raise
        shutil.rmtree(staging)
    _fsync_folder(destination.parent)
