"""The limits of a running program, and the thread that compares its use with them."""

import logging
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

MEASURE_SECONDS = 1.0
# A large tree takes time to list.
DISK_MEASURE_SECONDS = 5.0
BYTES_PER_BLOCK = 512

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResourceLimits:
    """Limits of a program with all of its processes; None means no limit."""

    max_seconds: float | None = None
    max_memory_bytes: int | None = None
    max_disk_bytes: int | None = None
    folder: str = "."
    """The folder whose files count towards the limit of disk space."""
    grace_seconds: float = 0.0
    """Seconds between SIGTERM and the kill of a program that has used its time."""

    @property
    def exist(self) -> bool:
        """Whether there is any limit."""
        return any(
            value is not None for value in (self.max_seconds, self.max_memory_bytes, self.max_disk_bytes)
        )


@dataclass(frozen=True)
class ExceededLimit:
    """A limit that a program has exceeded, and the value measured."""

    limit: str
    allowed: float
    measured: float

    @property
    def description(self) -> str:
        """The limit and the value in a sentence, for the program's log."""
        return f"{self.limit} is {self.allowed:.0f}, and the program has used {self.measured:.0f}"

    @property
    def allows_grace(self) -> bool:
        """Whether the program may save its work before it is killed: it uses nothing that others need."""
        return self.limit == "max_seconds"

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, for the worker."""
        return asdict(self)


class LimitWatch:
    """The thread that measures what the descendants of this process use."""

    def __init__(self, limits: ResourceLimits) -> None:
        self.exceeded: ExceededLimit | None = None
        """The first limit that was exceeded."""
        self._limits = limits
        self._started_at = time.monotonic()
        self._disk_measured_at = self._started_at
        self._thread = threading.Thread(target=self._run, name="limits", daemon=True)

    def start(self) -> None:
        """Start the thread, unless there is no limit."""
        if self._limits.exist:
            self._thread.start()

    def _run(self) -> None:
        while self.exceeded is None:
            time.sleep(MEASURE_SECONDS)
            try:
                self.exceeded = next(self._find_exceeded(), None)
            except (psutil.Error, OSError, ValueError):
                # A process can end while it is measured; the next second measures again.
                continue
            except Exception:
                # Without this thread, the limits would not be enforced any more.
                logger.exception("the limits of a program cannot be measured")

    def _find_exceeded(self) -> Iterator[ExceededLimit]:
        limits, now = self._limits, time.monotonic()
        seconds = now - self._started_at
        if limits.max_seconds is not None and seconds > limits.max_seconds:
            yield ExceededLimit("max_seconds", limits.max_seconds, seconds)
        if limits.max_memory_bytes is not None:
            used = measure_memory()
            if used > limits.max_memory_bytes:
                yield ExceededLimit("max_memory_bytes", limits.max_memory_bytes, used)
        if limits.max_disk_bytes is not None and now - self._disk_measured_at >= DISK_MEASURE_SECONDS:
            self._disk_measured_at = now
            used = measure_disk(Path(limits.folder))
            if used > limits.max_disk_bytes:
                yield ExceededLimit("max_disk_bytes", limits.max_disk_bytes, used)


def measure_memory() -> int:
    """Return the resident bytes of all descendants of this process."""
    descendants = psutil.Process().children(recursive=True)
    return sum(_measure_process(process) for process in descendants)


def measure_disk(folder: Path) -> int:
    """Return the bytes that the files in the folder occupy; a file with several names counts once."""
    sizes: dict[int, int] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                status = (Path(parent) / name).lstat()
            except OSError:  # The program has deleted it in the meantime.
                continue
            sizes[status.st_ino] = status.st_blocks * BYTES_PER_BLOCK
    return sum(sizes.values())


def _measure_process(process: psutil.Process) -> int:
    """Return a process's resident bytes, on Linux without the pages of files, which the kernel can drop.

    Not its address space: CUDA reserves far more of it than it uses.
    """
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        try:
            return int(process.memory_info().rss)
        except psutil.Error:
            return 0
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    return sum(int(values.get(name, "0").split()[0]) * 1024 for name in ("RssAnon", "RssShmem"))
