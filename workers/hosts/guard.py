"""The guard of a program: a small process between a worker and the program, which ends all of its processes.

The guard holds one end of a socket. With each renewal of its lease, the worker writes for how many seconds
the program may still run. When they have passed, when a limit is exceeded, when the socket closes because the
worker is gone, or when the program itself has ended, the guard kills every process that the program has
started. A worker that is killed, or suspended past its lease, therefore leaves no process that works on a run
which another worker has claimed since.

    python -m workers.hosts.guard OPTIONS -- COMMAND ARGUMENT…
"""

import contextlib
import json
import math
import os
import selectors
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NoReturn

from trainers.runtime.process_tree import MARKER, adopt_orphans, die_with_parent, kill_processes
from workers.hosts.guard_options import EXIT_SIGNAL_BASE, EXIT_START_FAILED, GuardOptions
from workers.hosts.resource_limits import LimitWatch, ResourceLimits

CHANNEL = 0
"""The guard's end of the socket is its standard input."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
POLL_SECONDS = 0.1


def main(arguments: Sequence[str]) -> int:
    """Guard the program of a command line."""
    options, separator, *command = arguments
    assert separator == "--" and command, __doc__
    return guard_program(GuardOptions.from_json(options), lambda: _execute(command))


def guard_program(options: GuardOptions, run: Callable[[], object]) -> int:
    """Run one program in a child until it ends, its time has passed, or the worker is gone.

    Returns the exit status for the worker. `run` is called in the child, and ends it.
    """
    if options.use_kernel:
        adopt_orphans()
    for number in STOP_SIGNALS:
        signal.signal(number, _exit)
    # A signal may arrive while the program starts.
    try:
        program = _fork_program(options, run)
        status = _Guard(program, options.seconds, options.limits).watch()
    finally:
        kill_processes(os.environ[MARKER], ancestor=os.getpid())
    if status is None:
        status = _reap_children(program)
    assert status is not None, "the program has been killed"
    return EXIT_SIGNAL_BASE - status if status < 0 else status


def _fork_program(options: GuardOptions, run: Callable[[], object]) -> int:
    """Fork the program into a group of its own, so that a request to stop it does not reach the guard."""
    if program := os.fork():
        # Here as well, for a request that arrives before the program has run at all.
        with contextlib.suppress(OSError):
            os.setpgid(program, program)
        return program
    try:
        os.setpgid(0, 0)
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        if options.use_kernel:
            die_with_parent()
        with open(os.devnull, "rb") as nothing:  # noqa: PTH123
            os.dup2(nothing.fileno(), CHANNEL)
        os.chdir(options.folder)
        run()
    except OSError as error:
        _log(f"cannot start the program: {error}")
    except BaseException:
        traceback.print_exc()
    finally:
        # No frame of the guard may continue in its child.
        os._exit(EXIT_START_FAILED)


def _execute(command: Sequence[str]) -> None:
    """Replace this process by a command, which inherits no file except its standard streams."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores them.
    os.closerange(CHANNEL + 3, os.sysconf("SC_OPEN_MAX"))
    try:
        os.execvp(command[0], list(command))  # noqa: S606
    except OSError as error:
        _log(f"cannot start {command[0]}: {error.strerror}")


class _Guard:
    """The state of a guard between two polls."""

    def __init__(self, program: int, seconds: float, limits: ResourceLimits) -> None:
        self._program = program
        self._deadline = _now() + seconds
        self._kill_at = math.inf
        """When a program that has exceeded its time limit is killed."""
        self._grace_seconds = limits.grace_seconds
        self._limit_watch = LimitWatch(limits)
        self._has_reported = False
        self._unread = b""

    def watch(self) -> int | None:
        """Wait until the program has ended and return its exit code, or None if it must be killed."""
        self._limit_watch.start()
        os.set_blocking(CHANNEL, False)
        with selectors.DefaultSelector() as selector:
            selector.register(CHANNEL, selectors.EVENT_READ)
            while (status := _reap_children(self._program)) is None:
                if _now() > self._deadline:
                    _log("killed: its lease was not renewed in time")
                    return None
                if _now() > self._kill_at or not self._check_limits():
                    return None
                if selector.select(timeout=POLL_SECONDS) and not self._receive():
                    return None
        return status

    def _receive(self) -> bool:
        """Carry out the worker's messages; return False if the worker is gone."""
        try:
            received = os.read(CHANNEL, 4096)
        except ConnectionError:
            received = b""
        *lines, self._unread = (self._unread + received).split(b"\n")
        for line in lines:
            word, _, argument = line.partition(b" ")
            if word == b"lease":
                self._deadline = _now() + float(argument)
            elif word == b"stop":
                self._stop()
        return bool(received)

    def _check_limits(self) -> bool:
        """Report a limit that is exceeded; return False if the program must be killed at once.

        After the time limit, the program may save a checkpoint; more memory or disk must not be used.
        """
        exceeded = self._limit_watch.exceeded
        if exceeded is None or self._has_reported:
            return True
        self._has_reported = True
        with contextlib.suppress(OSError):  # The worker may be gone, which `_receive` notices.
            os.write(CHANNEL, json.dumps(exceeded.as_dict()).encode() + b"\n")
        _log(f"limit: {exceeded.description}")
        if not exceeded.allows_grace:
            return False
        self._kill_at = _now() + self._grace_seconds
        self._stop()
        return True

    def _stop(self) -> None:
        """Ask the program to end: torch's launcher and engines pass SIGTERM on to their own processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._program, signal.SIGTERM)


def _reap_children(program: int) -> int | None:
    """Reap all children that have ended, adopted ones too; return the program's exit code if it is one."""
    status = None
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == program:
                status = os.waitstatus_to_exitcode(ended[1])
    return status


def _now() -> float:
    """Return the seconds of a clock that also counts while the host is suspended, as the lease does."""
    clock = time.CLOCK_BOOTTIME if sys.platform == "linux" else time.CLOCK_MONOTONIC
    return time.clock_gettime(clock)


def _log(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(EXIT_SIGNAL_BASE + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
