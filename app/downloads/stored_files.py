"""The content of stored files in chunks, verified as far as that can be done before the last one is sent."""

from collections.abc import Iterator
from typing import BinaryIO, Protocol

from app.downloads.ranges import ByteRange
from app.storage.local_files import CHUNK_BYTES
from app.storage.manifest import ArtifactCorrupt
from app.storage.opening import get_store


class Chunks(Iterator[bytes], Protocol):
    """Chunks of bytes that are read when they are needed."""

    def close(self) -> None:
        """Free what reading them needs, also if none was read."""


class FileChunks:
    """The chunks of an open file, each returned after the next one was read; it is closed at its end.

    A file that raises at its end, because it is damaged, does so before its last chunk is returned.
    """

    def __init__(self, file: BinaryIO, n_bytes: int | None = None) -> None:
        self._file = file
        self._n_missing = n_bytes
        self._next: bytes | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        chunk = self._read() if self._next is None else self._next
        if not chunk:
            self.close()
            raise StopIteration
        self._next = self._read()
        return chunk

    def close(self) -> None:
        """Close the file."""
        # A reader that verifies has no method `close`.
        self._file.__exit__(None, None, None)

    def _read(self) -> bytes:
        if self._n_missing is None:
            return self._file.read(CHUNK_BYTES)
        chunk = self._file.read(min(CHUNK_BYTES, self._n_missing)) if self._n_missing else b""
        self._n_missing -= len(chunk)
        return chunk


def read_stored(key: str, sha256: str | None, part: ByteRange | None = None) -> Chunks:
    """Open a published file, and return its chunks, or those of a part of it.

    A local file with a hash is verified first. A remote one is verified before its last chunk is sent, so
    that a damaged file never appears complete; a part of it is not, since that needs the whole file.

    Raises:
        ArtifactCorrupt: The file is missing, or has another hash.
    """
    store = get_store()
    try:
        if part is None:
            return FileChunks(store.open(key, sha256))
        file = store.open(key, sha256 if store.local else None)
        file.seek(part.start)
    except FileNotFoundError as error:
        raise ArtifactCorrupt(key, "it is missing") from error
    return FileChunks(file, part.end - part.start)
