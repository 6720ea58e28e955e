"""Reservation of GPUs. They belong to the host: a locked file for each GPU excludes all other processes.

The lock is the flock of an open file. The guard of a program inherits that file, and the program does not.
If the worker is killed, its guards therefore hold the GPUs until their programs have ended; then the kernel
releases the locks. Nothing has to be cleaned up, and nothing can be forgotten.
"""

import contextlib
import fcntl
import logging
import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from app.workers.gpus import Gpu
from trainers.configs import Queue

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Devices:
    """The GPUs that a run or an engine holds; none outside the queue `cuda`, whose devices all share."""

    gpus: tuple[Gpu, ...] = ()
    locks: tuple[IO[bytes], ...] = ()
    """Open, locked files; a guard that inherits them holds the GPUs as well."""
    by_uuid: bool = False
    """Whether programs address the GPUs by UUID."""

    @property
    def environment(self) -> dict[str, str]:
        """The variables that show these GPUs to a program, and hide all others.

        Every engine understands indices; vLLM accepts UUIDs only in versions from July 2026 on. But a MIG
        device has no index, and CUDA numbers GPUs differently where one of them has MIG devices.
        """
        elements = [gpu.uuid if self.by_uuid else str(gpu.index) for gpu in self.gpus]
        return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(elements)}


NO_DEVICES = Devices()


class DevicePool:
    """Reserves the GPUs that this worker may use."""

    def __init__(self, gpus: Sequence[Gpu], folder: Path) -> None:
        # A run on one device takes a MIG device first: a run on several needs whole GPUs.
        self._gpus = sorted(gpus, key=lambda gpu: not gpu.is_mig_device)
        self._by_uuid = any(gpu.is_mig_device for gpu in gpus)
        self._folder = folder
        self._held: set[IO[bytes]] = set()
        self._lock = threading.Lock()
        # While a folder is locked, systemd-tmpfiles leaves its files alone, however old they are.
        self._folder_lock = _open_folder(folder) if gpus else None

    @property
    def max_gpus(self) -> int:
        """The GPUs of the largest run that this worker can execute."""
        return count_usable(self._gpus)

    @property
    def all_held(self) -> bool:
        """Whether this worker itself holds all of its GPUs."""
        return len(self._held) == len(self._gpus)

    def take(self, queue: Queue, count: int = 1) -> Devices | None:
        """Reserve GPUs; None while fewer are free.

        All or none are reserved: two engines that each held half of what they need would wait forever.
        """
        if queue is not Queue.cuda:
            return NO_DEVICES
        free = self.take_free()
        if count_usable(free.gpus) >= count:
            return self.keep(free, count)
        self.release(free)
        return None

    def take_free(self) -> Devices:
        """Reserve all GPUs that no process of this host holds."""
        with self._lock:
            locks = {gpu: lock for gpu in self._gpus if (lock := _try_lock(self._file(gpu))) is not None}
            self._held.update(locks.values())
        return self._join(locks.items())

    def count_free(self) -> int:
        """Return how many GPUs of one run are free now."""
        free = self.take_free()
        self.release(free)
        return count_usable(free.gpus)

    def keep(self, devices: Devices, count: int) -> Devices:
        """Keep so many of the GPUs for a run, and release the others."""
        pairs = list(zip(devices.gpus, devices.locks, strict=True))
        usable = pairs if count == 1 else [pair for pair in pairs if not pair[0].is_mig_device]
        kept = self._join(usable[:count])
        self.release(self._join(pair for pair in pairs if pair[0] not in kept.gpus))
        return kept

    def release(self, devices: Devices) -> None:
        """Release the GPUs that are not released yet."""
        with self._lock:
            for lock in devices.locks:
                self._held.discard(lock)
                lock.close()

    def close(self) -> None:
        """Release everything."""
        with self._lock:
            for lock in self._held:
                lock.close()
            self._held.clear()
            if self._folder_lock is not None:
                os.close(self._folder_lock)
                self._folder_lock = None

    def _join(self, pairs: Iterable[tuple[Gpu, IO[bytes]]]) -> Devices:
        pairs = list(pairs)
        return Devices(tuple(gpu for gpu, _ in pairs), tuple(lock for _, lock in pairs), self._by_uuid)

    def _file(self, gpu: Gpu) -> Path:
        return self._folder / f"{gpu.uuid.replace('/', '_')}.lock"


def count_usable(gpus: Sequence[Gpu]) -> int:
    """Return how many of the GPUs one run can use: a program sees a single MIG device at most."""
    n_whole = sum(not gpu.is_mig_device for gpu in gpus)
    return n_whole or min(1, len(gpus))


def _try_lock(file: Path) -> IO[bytes] | None:
    """Lock a file that all users of the host share; None if another process holds it."""
    try:
        lock = os.fdopen(_open_shared(file), "rb")
    except OSError as error:
        logger.warning("a GPU is left out, because its lock file cannot be opened: %s", error)
        return None
    with contextlib.suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A file that was deleted meanwhile excludes nobody: the next process creates another one.
        if os.path.samestat(os.fstat(lock.fileno()), file.stat()):
            return lock
    lock.close()
    return None


def _open_shared(file: Path) -> int:
    # Reading suffices for flock. In a folder such as /tmp the kernel refuses O_CREAT for an existing file of
    # another user, so only the process that creates the file passes it.
    flags = os.O_RDONLY | os.O_NOFOLLOW
    with contextlib.suppress(FileNotFoundError):
        return os.open(file, flags)
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(file, flags | os.O_CREAT | os.O_EXCL)
        os.fchmod(descriptor, 0o644)
        return descriptor
    return os.open(file, flags)


def _open_folder(folder: Path) -> int:
    """Open the folder of the lock files, in which every user of the host may create files, and lock it."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(parents=True)
        folder.chmod(0o1777)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    # It fails while another process cleans the folder up; a file that is deleted then is created again.
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return descriptor
