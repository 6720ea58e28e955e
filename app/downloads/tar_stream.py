"""A folder as a tar archive that is computed while it is sent: no copy on the disk, one chunk in memory.

The same files give the same bytes. The archive's size is known before its first byte, so clients can show
their progress and notice an archive that ends early.
"""

import tarfile
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

from app.downloads.stored_files import Chunks

BLOCK_BYTES = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK_BYTES)


@dataclass(frozen=True)
class TarEntry:
    """A file of the archive; `read` is called when its turn comes."""

    name: str
    size_bytes: int
    read: Callable[[], Chunks]


def tar_size(entries: Sequence[TarEntry]) -> int:
    """Return the number of bytes of the archive."""
    return sum(len(_header(entry)) + entry.size_bytes + _n_padding(entry) for entry in entries) + len(END)


def stream_tar(entries: Sequence[TarEntry]) -> Generator[bytes]:
    """Yield the archive in chunks; raises what reading raises, and OSError for another size."""
    for entry in entries:
        yield _header(entry)
        n_sent = 0
        with closing(entry.read()) as chunks:
            for chunk in chunks:
                n_sent += len(chunk)
                yield chunk
        if n_sent != entry.size_bytes:
            raise OSError(f"{entry.name} has {n_sent} bytes instead of {entry.size_bytes}")
        yield bytes(_n_padding(entry))
    yield END


def _header(entry: TarEntry) -> bytes:
    info = tarfile.TarInfo(entry.name)
    info.size, info.mode = entry.size_bytes, 0o644
    return info.tobuf(tarfile.PAX_FORMAT)


def _n_padding(entry: TarEntry) -> int:
    return -entry.size_bytes % BLOCK_BYTES
