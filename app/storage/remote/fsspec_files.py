"""A remote file system of fsspec whose failures are OSErrors, as those of a disk are."""

import functools
import hashlib
from pathlib import Path
from typing import Any

from app.storage.local_files import CHUNK_BYTES
from app.storage.remote.errors import StoreUnreachable
from trainers.runtime.verified_files import hash_file

# Their errors mean that the store did not respond, or refused the request. fsspec does not convert all.
CLIENT_PACKAGES = ("adlfs", "aiohttp", "azure", "gcsfs", "google", "urllib3")
BLOCK_BYTES = 5 << 20


class FsspecFiles:
    """A file system of fsspec, with OSError in place of the errors of its client."""

    def __init__(self, fs: Any) -> None:
        self._fs = fs

    def upload(self, source: Path, destination: str, *, replace: bool = False) -> str:
        """Store a file, and return its hash; these file systems cannot refuse to overwrite."""
        sha256 = hash_file(source)
        self.__getattr__("put_file")(str(source), destination)
        return sha256

    def download(self, source: str, destination: Path) -> str:
        """Write a stored file to a local path, and return the hash of the bytes that arrived."""
        digest = hashlib.sha256()
        with self.open(source) as read, destination.open("wb") as write:
            while chunk := read.read(CHUNK_BYTES):
                digest.update(chunk)
                write.write(chunk)
        return digest.hexdigest()

    def open(self, path: str, mode: str = "rb") -> Any:
        """Open a file with a buffer of `BLOCK_BYTES`."""
        return self.__getattr__("open")(path, mode, block_size=BLOCK_BYTES)

    def find(self, path: str, *, detail: bool = True) -> Any:
        """Return all files below a folder, without a listing of before."""
        self.__getattr__("invalidate_cache")()
        return self.__getattr__("find")(path, detail=detail)

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._fs, name)
        if not callable(attribute):
            return attribute

        @functools.wraps(attribute)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return attribute(*args, **kwargs)
            except OSError:
                raise
            except Exception as error:
                if type(error).__module__.partition(".")[0] not in CLIENT_PACKAGES:
                    raise
                raise StoreUnreachable(f"{type(error).__name__}: {error}") from error

        return call
