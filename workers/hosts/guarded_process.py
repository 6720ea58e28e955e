"""Programs that never outlive the worker that started them: their start, their lease, and their end."""

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO

from trainers.runtime.process_tree import kill_abandoned_processes, kill_processes, mark, new_marker
from workers.hosts.resource_limits import ExceededLimit, ResourceLimits
from workers.hosts.warm_start import ForkedGuard, ForkServer

# A guard ends its program within milliseconds; one that does not is suspended.
GUARD_SECONDS = 10.0
MAX_REPORT_BYTES = 4096
NO_LIMITS = ResourceLimits()


class GuardedProcess:
    """A program with a guard (`workers/hosts/guard.py`)."""

    def __init__(
        self, guard: "subprocess.Popen[bytes] | ForkedGuard", channel: socket.socket, marker: str
    ) -> None:
        self.exceeded_limit: ExceededLimit | None = None
        """The limit that ended the program; known when `wait` has returned its exit status."""
        self._guard = guard
        self._channel = channel
        self._marker = marker

    @property
    def pid(self) -> int:
        """The guard's process id."""
        return self._guard.pid

    def extend(self, seconds: float) -> None:
        """Extend the time after which the program is killed to this many seconds from now."""
        self._send(f"lease {seconds:.3f}\n")

    def stop(self) -> None:
        """Ask the program to end by itself: SIGTERM to its process group."""
        self._send("stop\n")

    def kill(self) -> None:
        """Kill every process that the program has started, and wait until they have ended."""
        self._channel.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._guard.wait(GUARD_SECONDS)
        self._kill_unguarded()
        self._guard.wait()

    def wait(self, seconds: float) -> int | None:
        """Return the exit status, or None if the program is still running after so many seconds.

        The exit status of a program that signal n ended is 128 + n.
        """
        try:
            status = self._guard.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        self._kill_unguarded()
        self._read_report()
        self._channel.close()
        return status

    def _kill_unguarded(self) -> None:
        """Kill what a guard has left that is suspended or was killed itself."""
        status = self._guard.poll()
        if status is None or status < 0:
            kill_processes(self._marker)

    def _read_report(self) -> None:
        # Closed after `kill`, or empty if no limit was exceeded.
        with contextlib.suppress(OSError):
            if report := self._channel.recv(MAX_REPORT_BYTES):
                self.exceeded_limit = ExceededLimit(**json.loads(report))

    def _send(self, line: str) -> None:
        # The program may have ended, which wait() reports; a suspended guard must not block its worker.
        with contextlib.suppress(OSError):
            self._channel.send(line.encode())


def start_guarded_process(
    command: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str],
    seconds: float,
    locks: Sequence[IO[bytes]] = (),
    limits: ResourceLimits = NO_LIMITS,
    folder: Path | None = None,
    use_kernel: bool = sys.platform == "linux",
    fork_server: ForkServer | None = None,
) -> GuardedProcess:
    """Start a program whose output is appended to `log`; it is killed after `seconds` unless extended.

    The program starts in `folder`, by default in the worker's. The guard inherits the open files `locks`,
    and keeps them until every process of the program has ended. Without `use_kernel`, as on macOS, its
    processes are found by their environment alone. With a `fork_server`, guard and program are forked from
    it if that makes no difference but time.
    """
    kill_abandoned_processes()
    marker = new_marker()
    values = {"seconds": seconds, "limits": asdict(limits), "use_kernel": use_kernel}
    options = json.dumps(values | {"folder": str(folder or Path.cwd())})
    with log.open("ab") as output:
        if fork_server is not None and use_kernel and not locks:
            channel, guard_channel = _make_channel()
            with guard_channel:
                forked = fork_server.fork(command, environment, options, marker, guard_channel, output)
            if forked is not None:
                return GuardedProcess(forked, channel, marker)
            channel.close()
        channel, guard_channel = _make_channel()
        with guard_channel:
            guard = subprocess.Popen(
                [sys.executable, "-m", "workers.hosts.guard", options, "--", *command],
                stdin=guard_channel.fileno(),
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**environment, **mark(marker)},
                start_new_session=True,
                pass_fds=[lock.fileno() for lock in locks],
            )
    return GuardedProcess(guard, channel, marker)


def _make_channel() -> tuple[socket.socket, socket.socket]:
    """Return the worker's end, which never blocks, and the guard's."""
    channel, guard_channel = socket.socketpair()
    channel.setblocking(False)
    return channel, guard_channel
