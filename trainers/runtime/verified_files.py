"""Verification of files by their SHA-256, which reads an unchanged file once per host."""

import hashlib
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

# A file that is changed twice within one tick of its file system's clock keeps its time. The result for a
# file that changed this recently is therefore not remembered (FAT's ticks take 2 s, those of Linux 4 ms).
RACY_NS = 2_100_000_000
# 64 hexadecimal digits and a newline for each file; the record is started again after so many.
MAX_RECORD_BYTES = 65 * 200_000

logger = logging.getLogger(__name__)


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(root: Path, paths: Iterable[Path]) -> str:
    """Return a SHA-256 of the names, relative to the root, and the contents of files, in any order."""
    lines = [f"{path.relative_to(root)} {hash_file(path)}\n" for path in sorted(paths)]
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


class VerifiedFiles:
    """The files that had the expected hash when this host last read them.

    A file is identified by its path, device, inode, size, times of modification and of change, and expected
    hash. The time of change (ctime) cannot be set by a program, so that a changed file is noticed even if its
    time of modification was restored. An entry of the record is the hash of that identity: a line that is
    torn or foreign matches no file, and costs a second read at most. Bits that rot without a write change no
    time; `python -m app verify` reads every byte.
    """

    def __init__(self, record: Path | None, hash_file: Callable[[Path], str] = hash_file) -> None:
        self._record = record
        self._hash_file = hash_file
        self._entries: set[str] = set()
        self._n_bytes_read = 0
        self._lock = threading.Lock()

    def verify(self, path: Path, sha256: str, now_ns: Callable[[], int] = time.time_ns) -> bool:
        """Return whether this is a regular file with this hash; raises OSError."""
        before = path.lstat()
        if not stat.S_ISREG(before.st_mode):
            return False
        entry = _identity(path, before, sha256)
        if self._contains(entry):
            return True
        started_ns = now_ns()
        if self._hash_file(path) != sha256:
            return False
        is_settled = started_ns - max(before.st_mtime_ns, before.st_ctime_ns) > RACY_NS
        if is_settled and _identity(path, path.lstat(), sha256) == entry:
            self._add(entry)
        return True

    def _contains(self, entry: str) -> bool:
        with self._lock:
            if entry not in self._entries:
                self._read_new_entries()
            return entry in self._entries

    def _read_new_entries(self) -> None:
        """Read what this and other processes of the host have appended since the last read."""
        if self._record is None:
            return
        with suppress(OSError), self._record.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < self._n_bytes_read:  # Another process has started it again.
                self._n_bytes_read = 0
            file.seek(self._n_bytes_read)
            self._entries.update(file.read().decode("ascii", "replace").splitlines())
            self._n_bytes_read = size

    def _add(self, entry: str) -> None:
        with self._lock:
            self._entries.add(entry)
            if self._record is None:
                return
            try:
                self._record.parent.mkdir(parents=True, exist_ok=True)
                with self._record.open("ab") as file:
                    if file.tell() > MAX_RECORD_BYTES:
                        file.truncate(0)
                    # One write of one line, so that lines of several processes do not mix. It begins with a
                    # newline, which ends a line that a killed process left unfinished.
                    file.write(f"\n{entry}\n".encode())
            except OSError as error:  # A full disk: the file is read again next time.
                logger.warning("cannot remember a verified file: %s", error)


def _identity(path: Path, status: os.stat_result, sha256: str) -> str:
    numbers = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return hashlib.sha256(
        f"{sha256} {numbers} {path.absolute()}".encode(errors="surrogateescape")
    ).hexdigest()
