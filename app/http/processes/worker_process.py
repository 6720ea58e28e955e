"""The worker of a service on one machine: a child process, started again whenever it ends."""

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from app.scheduling.incidents import Incident
from trainers.configs import Queue

# The wait before a new start doubles with each exit; a worker that lives STABLE_SECONDS is good.
FIRST_RESTART_SECONDS = 1.0
MAX_RESTART_SECONDS = 30.0
STABLE_SECONDS = 60.0

logger = logging.getLogger(__name__)


class WorkerExited(Exception):
    """The worker ended although nobody had asked this process to stop it."""


class WorkerProcess:
    """A worker that ends with this process, because its standard input closes.

    It has its own session: Ctrl-C in a terminal reaches only this process, which stops both in order.
    """

    def __init__(self, queues: Sequence[Queue]) -> None:
        options = [option for queue in queues for option in ("--queue", queue.value)]
        self._command = [sys.executable, "-m", "workers", *options, "--exit-with-stdin"]
        self._incident = Incident("worker process", consequence="; it is started again")
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name="worker process", daemon=True)

    def start(self) -> None:
        """Start the worker, and the thread that starts it again."""
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Ask the worker to stop, and kill it after `seconds`."""
        with self._lock:
            self._stopping.set()
            process = self._process
        if process is not None:
            process.terminate()
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                logger.warning("the worker did not stop within %s s and is killed", seconds)
                process.kill()
        self._thread.join()

    def _run(self) -> None:
        restart_seconds = FIRST_RESTART_SECONDS
        while True:
            started_at = time.monotonic()
            try:
                status = self._run_once()
                if status is None:
                    return
                raise WorkerExited(f"exit status {status}")
            except Exception as error:
                self._incident.record(error)
            if time.monotonic() - started_at > STABLE_SECONDS:
                restart_seconds = FIRST_RESTART_SECONDS
            if self._stopping.wait(restart_seconds):
                return
            restart_seconds = min(2 * restart_seconds, MAX_RESTART_SECONDS)

    def _run_once(self) -> int | None:
        """Run the worker until it ends; return its exit status, or None if this process is stopping."""
        with self._lock:
            if self._stopping.is_set():
                return None
            self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, start_new_session=True)
        while True:
            try:
                status = self._process.wait(STABLE_SECONDS)
            except subprocess.TimeoutExpired:
                self._incident.resolve()
            else:
                return None if self._stopping.is_set() else status
