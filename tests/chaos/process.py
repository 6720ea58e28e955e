"""A process of the service, supervised as by systemd or compose: it is started again after it has ended."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.chaos.files import PROGRAM, ROOT

LOG_TAIL_BYTES = 2000
ROLES = {"worker": "workers", "guard": "workers.hosts.guard", "program": PROGRAM}


@dataclass(frozen=True)
class UnexpectedExit:
    """A process that ended although nothing had ended it: without a supervisor, a person is needed."""

    name: str
    status: int
    monotonic: float
    log_tail: str


@dataclass
class ManagedProcess:
    """One process, its log, and the times that it ended by itself."""

    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    unexpected_exits: list[UnexpectedExit] = field(default_factory=list)
    _next_variables: dict[str, str] = field(default_factory=dict)
    _n_faults: int = 0
    """Faults in progress that may end the process at any time."""
    _is_ending: bool = False
    """Whether a fault has ended the process, or has asked it to stop."""
    _popen: subprocess.Popen[bytes] | None = None
    _lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def pid(self) -> int:
        """The process id of the current start."""
        assert self._popen is not None, f"{self.name} was started"
        return self._popen.pid

    @property
    def is_running(self) -> bool:
        """Whether the process was started and has not ended."""
        return self._popen is not None and self._popen.poll() is None

    def start(self) -> None:
        """Start the process; its output is appended to its log."""
        with self._lock, self.log.open("ab") as log:
            self._is_ending = False
            variables, self._next_variables = self._next_variables, {}
            self._popen = subprocess.Popen(
                [sys.executable, *self.arguments],
                env={**self.environment, **variables},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def end(self, number: signal.Signals, **variables: str) -> bool:
        """Send a signal that ends the process; its next start has these environment variables in addition.

        Returns False if the process has ended already.
        """
        with self._lock:
            if not self.is_running:
                return False
            self._is_ending = True
            self._next_variables = variables
            return send(self.pid, number)

    @contextmanager
    def may_end(self) -> Iterator[None]:
        """Attribute an end of the process to a fault until the block ends."""
        with self._lock:
            self._n_faults += 1
        try:
            yield
        finally:
            with self._lock:
                self._n_faults -= 1
                self._is_ending = self._is_ending or not self.is_running

    def restart_if_ended(self) -> None:
        """Start the process again if it has ended; an end that no fault explains is recorded."""
        with self._lock:
            if self._popen is None or (status := self._popen.poll()) is None:
                return
            if not self._is_ending and not self._n_faults:
                tail = self.log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
                self.unexpected_exits.append(UnexpectedExit(self.name, status, time.monotonic(), tail))
            self.start()

    def kill(self) -> None:
        """Kill the process for good."""
        with self._lock:
            popen, self._popen = self._popen, None
        if popen is not None:
            popen.kill()
            popen.wait()


def find_processes(role: str, folder: str) -> list[psutil.Process]:
    """Return the processes of one installation with this role, by the folder in their command or settings."""
    found = []
    for process in psutil.process_iter():
        try:
            is_ours = has_role(process, role) and (
                any(folder in argument for argument in process.cmdline())
                or folder in process.environ().get("TUNESMITH_DATA_DIR", "")
            )
        except psutil.Error:
            continue
        if is_ours:
            found.append(process)
    return found


def has_role(process: psutil.Process, role: str) -> bool:
    """Return whether a process is a `worker`, a `guard` or a `program`, by the module that it runs."""
    try:
        command: list[str] = process.cmdline()
    except psutil.Error:
        return False
    return command[1:3] == ["-m", ROLES[role]]


def send(pid: int, number: signal.Signals) -> bool:
    """Send a signal; return False if there is no such process."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
