"""Warm starts: programs are forked from a process that has already imported their packages.

The process is `workers/hosts/fork_server.py`. Whatever it cannot start exactly as a cold start would, because
it is not ready, has ended, or has other variables in its environment, is left to a cold start.
"""

import json
import logging
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO

from app.settings import Settings
from serving.engines.child_engine import log_tail
from trainers.configs import StageKind
from trainers.runtime.process_tree import MARKER, mark, new_marker
from workers.hosts.devices import NO_DEVICES
from workers.hosts.environments import empty_folder, program_environment
from workers.hosts.guard_options import OWN_PREFIX, ForkRequest

MODULES = (
    *(kind.stage.program for kind in StageKind if kind.stage.program is not None),
    "serving.parity",
    "serving.engines.hf",
)
LOG = "log.txt"
# A fork takes milliseconds; a server that does not respond is suspended.
RESPONSE_SECONDS = 5.0
RESTART_SECONDS = 60.0
READY_POLL_SECONDS = 0.2
STOP_SECONDS = 5.0
MAX_RESPONSE_BYTES = 4096

logger = logging.getLogger(__name__)


def create_fork_server(settings: Settings) -> "ForkServer | None":
    """Return the fork server of a worker, not started; None if it is switched off, or on another system.

    On macOS a process that has loaded the system's frameworks cannot fork safely.
    """
    if not settings.warm_start or sys.platform != "linux":
        return None
    # Programs with a GPU start cold: bitsandbytes, for one, looks for a GPU when it is imported.
    return ForkServer(settings.trainer_python or sys.executable, program_environment(NO_DEVICES))


class ForkedGuard:
    """A guard that is not a child of this process; used like a `Popen`."""

    def __init__(self, pid: int, process: int, status: int) -> None:
        self.pid = pid
        self._process = process
        """A pidfd, which becomes readable when the guard has ended."""
        self._status = status
        """A pipe with its exit status."""
        self._returncode: int | None = None
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """Return the exit status, -9 for a guard that was killed, or None while it is running."""
        return self._wait(0)

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status; raises TimeoutExpired while the guard is running."""
        status = self._wait(timeout)
        if status is None:
            raise subprocess.TimeoutExpired("guard", timeout or 0)
        return status

    def _wait(self, seconds: float | None) -> int | None:
        if self._returncode is None and self._has_ended(seconds):
            with self._lock:
                if self._returncode is None:
                    self._returncode = int(os.read(self._status, 16) or -signal.SIGKILL)
                    os.close(self._status)
                    os.close(self._process)
        return self._returncode

    def _has_ended(self, seconds: float | None) -> bool:
        poll = select.poll()
        poll.register(self._process, select.POLLIN)
        return bool(poll.poll(None if seconds is None else max(0, round(seconds * 1000))))


class ForkServer:
    """The fork server of this worker, started again when it has ended."""

    def __init__(self, python: str, environment: Mapping[str, str], modules: Sequence[str] = MODULES) -> None:
        self._python = python
        self._environment = dict(environment)
        """The variables of the server, and thus of every program that it can start."""
        self._modules = list(modules)
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._folder: Path | None = None
        self._is_ready = False
        self._started_at: float | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the process, which imports packages for some seconds; cold starts do not wait for it."""
        with self._lock:
            self._start()

    def stop(self) -> None:
        """End the process; the programs that it has forked continue."""
        with self._lock:
            self._stop()

    @property
    def is_ready(self) -> bool:
        """Whether the next program can be forked."""
        with self._lock:
            return self._check_ready()

    def accepts(self, environment: Mapping[str, str]) -> bool:
        """Return whether only variables of our own differ from the server's: libraries read theirs early."""
        return _without_own(environment) == _without_own(self._environment)

    def fork(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        options: str,
        marker: str,
        channel: socket.socket,
        log: IO[bytes],
    ) -> ForkedGuard | None:
        """Fork the guard of a program, or return None if only a cold start is the same."""
        if [self._python, "-m"] != list(command[:2]):
            return None
        with self._lock:
            if not self.accepts(environment) or not self._check_ready():
                return None
            own = {name: value for name, value in environment.items() if _is_own(name)}
            request = ForkRequest(command[2], list(command[3:]), own, options, marker)
            try:
                return self._send(request, channel, log)
            except OSError as error:
                # A guard that it may have forked ends with the channel, which the caller closes.
                self._report(f"it does not respond: {error}")
                if self._process is not None:
                    self._process.kill()
                self._stop()
                return None

    def _start(self) -> None:
        self._started_at = time.monotonic()
        self._is_ready = False
        try:
            control = self._start_process()
        except OSError as error:
            self._report(f"it cannot be started: {error}")
            self._stop()
            return
        threading.Thread(target=self._watch_start, args=(control,), name="fork server", daemon=True).start()

    def _start_process(self) -> socket.socket:
        self._folder = Path(tempfile.mkdtemp(prefix="tunesmith-fork-server-"))
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(RESPONSE_SECONDS)
        with theirs, (self._folder / LOG).open("wb") as log:
            self._process = subprocess.Popen(
                [self._python, "-m", "workers.hosts.fork_server", *self._modules],
                stdin=theirs.fileno(),
                stdout=log,
                stderr=log,
                cwd=empty_folder(self._folder),
                env={**self._environment, **mark(new_marker())},
                start_new_session=True,
            )
        return self._control

    def _watch_start(self, control: socket.socket) -> None:
        """Report that the server is ready, or has ended, as soon as it is."""
        while self._control is control:
            time.sleep(READY_POLL_SECONDS)
            with self._lock:
                if self._control is control and self._check_ready():
                    return

    def _check_ready(self) -> bool:
        """Return whether the server accepts requests; one that has ended is started again, once a minute."""
        if self._started_at is None:
            return False
        if self._control is None:
            if time.monotonic() - self._started_at > RESTART_SECONDS:
                self._start()
            return False
        if not self._is_ready and select.select([self._control], [], [], 0)[0]:
            try:
                message = self._control.recv(MAX_RESPONSE_BYTES)
            except OSError:
                message = b""
            if not message:
                assert self._folder is not None
                self._report(f"it ended: {log_tail(self._folder / LOG, lines=1)}")
                self._stop()
                return False
            self._is_ready = True
            # Its log only explains a failed start; a worker that is killed must leave no folder behind.
            self._remove_folder()
            seconds = round(time.monotonic() - self._started_at, 1)
            logger.info("warm starts are ready", extra={**json.loads(message), "seconds": seconds})
        return self._is_ready

    def _send(self, request: ForkRequest, channel: socket.socket, log: IO[bytes]) -> ForkedGuard:
        assert self._control is not None
        status, their_status = os.pipe()
        try:
            message = json.dumps(asdict(request)).encode()
            descriptors = [channel.fileno(), log.fileno(), their_status]
            socket.send_fds(self._control, [message], descriptors)
            response, received, _, _ = socket.recv_fds(self._control, MAX_RESPONSE_BYTES, 1)
            if not response:
                raise ConnectionResetError("it has ended")
        except BaseException:
            os.close(status)
            raise
        finally:
            os.close(their_status)
        return ForkedGuard(json.loads(response)["pid"], received[0], status)

    def _stop(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            if not self._is_ready:
                self._process.kill()  # It would first import the rest.
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        self._remove_folder()

    def _remove_folder(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _report(self, reason: str) -> None:
        logger.warning("warm starts are unavailable, programs start cold: %s", reason)


def _is_own(name: str) -> bool:
    return name.startswith(OWN_PREFIX) and name != MARKER


def _without_own(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not _is_own(name)}
