"""Programs that run in a process group of their own and never outlive the worker that started them.

Between worker and program stands a guard: this very file, run as a program. It holds the reading
end of a pipe. While the worker renews its lease it writes how many seconds the program may go on;
when they run out, or when the pipe closes because the worker is gone, the guard kills the whole
group. So a worker that is killed, or stopped past its lease, leaves no program that works on
what another worker has taken up.

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

EXIT_START_FAILED = 127
EXIT_SIGNAL_BASE = 128
_PR_SET_PDEATHSIG = 1


class GuardedProcess:
    """A guarded program."""

    def __init__(self, guard: subprocess.Popen[bytes]) -> None:
        assert guard.stdin is not None
        self._guard = guard
        self._pipe = guard.stdin

    @property
    def pid(self) -> int:
        """The guard's process id."""
        return self._guard.pid

    def extend(self, seconds: float) -> None:
        """Let the program go on for so many seconds from now."""
        self._tell(f"lease {seconds:.3f}\n")

    def stop(self) -> None:
        """Ask the program to end by itself (SIGTERM to its group)."""
        self._tell("stop\n")

    def kill(self) -> None:
        """Kill the program's group, and wait until it is gone."""
        self._pipe.close()
        self._guard.wait()

    def wait(self, seconds: float) -> int | None:
        """The exit status, or None if the program still runs after so many seconds.

        A program ended by signal n answers 128 + n.
        """
        try:
            status = self._guard.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        self._pipe.close()
        return status

    def _tell(self, line: str) -> None:
        # A program that has ended or was killed cannot be told anything; wait() says so.
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._pipe.write(line.encode())


def start_guarded_process(
    command: Sequence[str], *, log: Path, environment: Mapping[str, str], seconds: float
) -> GuardedProcess:
    """Start a program whose output goes to `log`; it is killed after `seconds` unless extended."""
    with log.open("ab") as output:
        guard = subprocess.Popen(
            [sys.executable, "-m", "workers.hosts.guarded_process", str(seconds), "--", *command],
            stdin=subprocess.PIPE,
            bufsize=0,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
        )
    return GuardedProcess(guard)


def main(arguments: Sequence[str]) -> int:
    """Guard one program until it ends, the lease runs out, or the worker is gone."""
    seconds, separator, *command = arguments
    assert separator == "--" and command, __doc__
    # The program's group is its own, so that the guard outlives it and can report how it ended.
    try:
        program = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=_die_with_guard
        )
    except OSError as error:
        print(f"cannot start {command[0]}: {error}", file=sys.stderr)
        return EXIT_START_FAILED
    status = _watch(program, time.monotonic() + float(seconds))
    _signal_group(program.pid, signal.SIGKILL)  # what the program left behind
    return EXIT_SIGNAL_BASE - status if status < 0 else status


def _watch(program: "subprocess.Popen[bytes]", deadline: float) -> int:
    os.set_blocking(sys.stdin.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        unread = b""
        while (status := program.poll()) is None:
            if time.monotonic() > deadline:
                print("the lease has run out: killed", file=sys.stderr, flush=True)
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
    """On Linux the kernel kills the program should the guard itself be killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
