"""Programs that run in a process group of their own and never outlive the worker that started them.

A guard runs between the worker and the program: this very file, as a program. It holds the reading end of a
pipe. With each renewal of its lease, the worker writes for how many seconds the program may still run. When
they have passed, or when the pipe closes because the worker is gone, the guard kills the whole group. A
worker that is killed, or suspended past its lease, therefore leaves no program that works on a run which
another worker has claimed since.

    python -m workers.hosts.guarded_process SECONDS -- COMMAND ARGUMENT…
"""

import contextlib
import ctypes
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

EXIT_START_FAILED = 127
EXIT_SIGNAL_BASE = 128
_PR_SET_PDEATHSIG = 1


class GuardedProcess:
    """A program with a guard."""

    def __init__(self, guard: subprocess.Popen[bytes]) -> None:
        assert guard.stdin is not None
        self._guard = guard
        self._pipe = guard.stdin

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
        """Kill the program's process group, and wait until it has ended."""
        self._pipe.close()
        self._guard.wait()

    def wait(self, seconds: float) -> int | None:
        """Return the exit status, or None if the program is still running after so many seconds.

        The exit status of a program that signal n ended is 128 + n.
        """
        try:
            status = self._guard.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        self._pipe.close()
        return status

    def _send(self, line: str) -> None:
        # The program may have ended; wait() reports that.
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._pipe.write(line.encode())


def start_guarded_process(
    command: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str],
    seconds: float,
    locks: Sequence[IO[bytes]] = (),
) -> GuardedProcess:
    """Start a program whose output is appended to `log`; it is killed after `seconds` unless extended.

    The guard inherits the open files `locks`, and keeps them until the program has ended.
    """
    with log.open("ab") as output:
        guard = subprocess.Popen(
            [sys.executable, "-m", "workers.hosts.guarded_process", str(seconds), "--", *command],
            stdin=subprocess.PIPE,
            bufsize=0,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
            pass_fds=[lock.fileno() for lock in locks],
        )
    return GuardedProcess(guard)


def main(arguments: Sequence[str]) -> int:
    """Guard one program until it ends, its time has passed, or the worker is gone."""
    seconds, separator, *command = arguments
    assert separator == "--" and command, __doc__
    # The program has a group of its own, so that the guard survives it and can report its exit status.
    try:
        program = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=_die_with_guard
        )
    except OSError as error:
        print(f"cannot start {command[0]}: {error}", file=sys.stderr)
        return EXIT_START_FAILED
    status = _watch(program, time.monotonic() + float(seconds))
    _signal_group(program.pid, signal.SIGKILL)  # Processes that the program has left behind.
    return EXIT_SIGNAL_BASE - status if status < 0 else status


def _watch(program: "subprocess.Popen[bytes]", deadline: float) -> int:
    os.set_blocking(sys.stdin.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        unread = b""
        while (status := program.poll()) is None:
            if time.monotonic() > deadline:
                print("killed: the lease was not renewed in time", file=sys.stderr, flush=True)
                _signal_group(program.pid, signal.SIGKILL)
                return program.wait()
            if not selector.select(timeout=0.1):
                continue
            received = os.read(sys.stdin.fileno(), 4096)
            if not received:
                _signal_group(program.pid, signal.SIGKILL)
                return program.wait()
            *lines, unread = (unread + received).split(b"\n")
            for line in lines:
                word, _, argument = line.partition(b" ")
                if word == b"lease":
                    deadline = time.monotonic() + float(argument)
                elif word == b"stop":
                    _signal_group(program.pid, signal.SIGTERM)
    return status


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def _die_with_guard() -> None:
    """Let the kernel kill the program if the guard itself is killed (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
