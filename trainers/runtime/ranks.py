"""The ranks of a run: one process for each of its devices, and how each notices that another has failed.

A failure is noticed by files and process ids, not by a collective operation: NCCL waits for a rank that has
died until its time limit, and all GPUs are idle until then. The folder `.ranks` of the run directory has a
file for each running rank, which a rank removes before it ends on purpose.
"""

import contextlib
import logging
import os
import sys
import threading
import time
from pathlib import Path

import psutil

from trainers.runtime import run_dir as files
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import ProgramError
from trainers.runtime.process_tree import is_running

FOLDER = ".ranks"
EXIT_FAILED = 1
POLL_SECONDS = 0.5
# A rank whose own error is the cause of the other's has this long to write it.
GRACE_SECONDS = 1.0
# The kernel closes a dying process's connections before it is gone.
DEATH_SECONDS = 2.0

logger = logging.getLogger("trainers")


class RankLost(ProgramError):
    code = ErrorCode.rank_lost

    def __init__(self, rank: int) -> None:
        super().__init__(
            f"Rank {rank} of {world_size()} was killed, or crashed without an error of its own.",
            "The log shows which signal ended it. The run resumes from its last checkpoint.",
        )


def world_size() -> int:
    """Return the number of processes of the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def current_rank() -> int:
    """Return the number of this process among those of the run."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Return the number of this process among those of this host."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_first_of_host() -> bool:
    """Return whether this process does what is done once on each host."""
    return local_rank() == 0


def ranks_of_host() -> int:
    """Return the number of processes of the run on this host."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size())))


def launch_name() -> str:
    """Return a name of this start of the run, the same for all ranks of a host: that of their launcher."""
    return f"{os.getppid()}-{psutil.Process(os.getppid()).create_time():.0f}"


def node_rank() -> int:
    """Return the number of this host among those of the run."""
    return int(os.environ.get("GROUP_RANK", "0"))


def node_count() -> int:
    """Return the number of hosts of the run."""
    return world_size() // ranks_of_host()


class RankWatch:
    """The thread of a rank that ends it when another rank has failed."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._launched_at = psutil.Process(os.getppid()).create_time()
        # An earlier start in the same run directory may have left files.
        self._folder = run_dir / FOLDER / launch_name()
        self._file = self._folder / f"{current_rank()}-{os.getpid()}"
        self._is_ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ranks", daemon=True)

    def start(self) -> None:
        """Register this rank and start the thread; a run directory that cannot be used is reported later."""
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file.touch()
            self._thread.start()

    def prepare_end(self) -> None:
        """Leave the end of this process to its main thread."""
        self._is_ending.set()

    def leave(self) -> None:
        """Remove this rank: it ends on purpose."""
        self._is_ending.set()
        with contextlib.suppress(OSError):
            self._file.unlink(missing_ok=True)

    def find_lost_rank(self, wait_seconds: float) -> int | None:
        """Return a rank that dies within this time, or has died, without an error of its own."""
        deadline = time.monotonic() + wait_seconds
        while self._find_error() is None:
            if (rank := self._find_dead_rank()) is not None or time.monotonic() > deadline:
                return rank
            time.sleep(POLL_SECONDS / 5)
        return None

    def _run(self) -> None:
        while not self._is_ending.wait(POLL_SECONDS):
            failed = self._find_error()
            dead = self._find_dead_rank() if failed is None else None
            if (failed is None and dead is None) or self._is_ending.wait(GRACE_SECONDS):
                continue
            logger.error(
                "Rank %s has failed, so rank %d ends.", failed if dead is None else dead, current_rank()
            )
            if dead is not None:
                with contextlib.suppress(OSError):
                    files.write_error(self._run_dir, RankLost(dead), current_rank())
            # The rank that has failed must not take this one for its cause.
            with contextlib.suppress(OSError):
                self._file.unlink(missing_ok=True)
            # The main thread may wait for the other rank, where no exception and no signal reaches it.
            sys.stderr.flush()
            os._exit(EXIT_FAILED)

    def _find_error(self) -> int | None:
        """Return another rank that has written an error since this start of the run."""
        for path in files.list_errors(self._run_dir):
            with contextlib.suppress(OSError, ValueError):
                rank = int(path.stem.removeprefix("error-"))
                # Creation times of processes have a resolution of a second.
                if rank != current_rank() and path.stat().st_mtime > self._launched_at - 1:
                    return rank
        return None

    def _find_dead_rank(self) -> int | None:
        for path in self._folder.glob("*-*"):
            rank, pid = map(int, path.name.split("-"))
            # A rank that has ended on purpose has removed its file before.
            if not is_running(pid) and path.exists():
                return rank
        return None
