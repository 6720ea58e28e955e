"""The folder of cached datasets of a host.

One process builds an entry under a lock, and others that need it wait. An entry appears by a rename when it
is complete, so a crash leaves nothing or the whole. Each process that uses an entry holds a shared lock on
it, which the kernel releases when the process ends. Entries that nobody uses are removed, those unused for
longest first, until the others are within the limit.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from trainers.runtime import run_dir as files
from trainers.runtime.errors import has_disk_full_cause

# The last file of an entry; its time of change is that of the entry's last use.
META = "meta.json"
FOLDER_VARIABLE = "TUNESMITH_ROW_CACHE"
LIMIT_VARIABLE = "TUNESMITH_MAX_ROW_CACHE_BYTES"
# The rows of a mixture, in an entry of its own.
MIXTURE = "mixture.jsonl"
# In the run directory of a program that was started by hand.
RUN_FOLDER = "rendered"

logger = logging.getLogger("trainers")

# Shared locks on the entries in use; the kernel releases them at the end of the process.
_in_use: list[int] = []


class RowCache:
    """Entries in a folder, bounded in size; 0 means unlimited."""

    def __init__(self, folder: Path, max_bytes: int = 0) -> None:
        self.folder, self.max_bytes = folder, max_bytes

    def fetch(self, key: str, build: Callable[[Path], None]) -> Path:
        """Return the folder of an entry, which `build` fills if it does not exist.

        It stays until this process ends.
        """
        entry = self.folder / key
        while not _hold(entry):
            self.folder.mkdir(parents=True, exist_ok=True)
            with self.lock(key):
                if not (entry / META).exists():
                    self._remove_unfinished(key)
                    files.publish_folder(entry, build)
        self._prune()
        return entry

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Hold the lock under which an entry is built; a signal interrupts the wait."""
        # One file for each first byte of a key, so that their number is bounded.
        with (self.folder / f"{key[:2]}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _remove_unfinished(self, key: str) -> None:
        """Remove what a killed process has left of this entry."""
        for path in self.folder.glob(f".{key}.*.tmp"):
            shutil.rmtree(path, ignore_errors=True)

    def _prune(self) -> None:
        if not self.max_bytes:
            return
        entries = [(entry, folder_bytes(entry)) for entry in self.folder.iterdir() if (entry / META).exists()]
        surplus = sum(size for _, size in entries) - self.max_bytes
        for entry, size in sorted(entries, key=lambda item: _last_use(item[0])):
            if surplus > 0 and remove_entry(entry):
                surplus -= size


def cache_of_process(run_dir: Path) -> RowCache:
    """Return the cache that the worker names; without one that can be written, a folder of the run."""
    name = os.environ.get(FOLDER_VARIABLE)
    if name is None:
        return RowCache(run_dir / RUN_FOLDER)
    folder = Path(name)
    if not _can_write(folder):
        logger.warning("The row cache %s cannot be written; the run keeps its rows for itself.", folder)
        return RowCache(run_dir / RUN_FOLDER)
    return RowCache(folder, int(os.environ.get(LIMIT_VARIABLE, "0")))


@contextmanager
def temporary_cache() -> Iterator[RowCache]:
    """Yield a cache of which nothing is left; what was mapped from it stays readable."""
    with tempfile.TemporaryDirectory(prefix="tunesmith-rows-") as folder:
        yield RowCache(Path(folder))


def remove_entry(entry: Path) -> bool:
    """Remove an entry unless a process uses it; return whether it was removed."""
    try:
        descriptor = os.open(entry / META, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Renamed first, so that nobody finds half of it.
        removed = entry.with_name(f".{entry.name}.{os.getpid()}.tmp")
        entry.rename(removed)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    shutil.rmtree(removed, ignore_errors=True)
    return True


def folder_bytes(folder: Path) -> int:
    """Return the size of the files in a folder, some of which may be removed meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            status = path.lstat()
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total


def _can_write(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if has_disk_full_cause(error):
            raise
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def _hold(entry: Path) -> bool:
    """Hold the shared lock on an entry and record its use; return False if it does not exist."""
    try:
        descriptor = os.open(entry / META, os.O_RDONLY)
    except FileNotFoundError:
        return False
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    try:
        if os.fstat(descriptor).st_ino == (entry / META).stat().st_ino:
            os.utime(entry / META)
            _in_use.append(descriptor)
            return True
    except FileNotFoundError:
        pass
    # Another process has removed the entry before this one held the lock.
    os.close(descriptor)
    return False


def _last_use(entry: Path) -> float:
    try:
        return (entry / META).stat().st_mtime
    except FileNotFoundError:
        return 0.0
