"""A guarded program: its exit status, the request to stop, and the renewal of its lease."""

import os
import signal
import sys
import time
from pathlib import Path

from workers.hosts import guard_options, guarded_process


def start(log: Path, program: str, seconds: float = 30) -> guarded_process.GuardedProcess:
    return guarded_process.start_guarded_process(
        [sys.executable, "-c", program], log=log, environment=os.environ, seconds=seconds
    )


def wait_for_output(log: Path) -> None:
    deadline = time.monotonic() + 60
    while not log.read_text():
        assert time.monotonic() < deadline, "the program printed nothing"
        time.sleep(0.02)


def test_the_worker_receives_exit_status_and_output(tmp_path: Path) -> None:
    child = start(tmp_path / "log", "print('hello'); raise SystemExit(7)")
    assert child.wait(60) == 7
    assert (tmp_path / "log").read_text() == "hello\n"


def test_the_exit_status_of_a_killed_program_contains_the_signal(tmp_path: Path) -> None:
    child = start(tmp_path / "log", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert child.wait(60) == guard_options.EXIT_SIGNAL_BASE + signal.SIGSEGV


def test_a_command_that_does_not_exist_is_reported_in_the_log(tmp_path: Path) -> None:
    child = guarded_process.start_guarded_process(
        ["/no/such"], log=tmp_path / "log", environment=os.environ, seconds=30
    )
    assert child.wait(60) == guard_options.EXIT_START_FAILED
    assert "cannot start /no/such" in (tmp_path / "log").read_text()


def test_a_program_that_is_asked_to_stop_can_choose_its_exit_status(tmp_path: Path) -> None:
    child = start(
        tmp_path / "log",
        "import signal, sys, time\n"
        "signal.signal(15, lambda *_: sys.exit(75))\n"
        "print(1, flush=True)\n"
        "time.sleep(60)",
    )
    wait_for_output(tmp_path / "log")
    child.stop()
    assert child.wait(60) == 75


def test_a_renewed_lease_keeps_the_program_alive(tmp_path: Path) -> None:
    child = start(tmp_path / "log", "import time; time.sleep(7)", seconds=5)
    child.extend(60)
    assert child.wait(60) == 0
