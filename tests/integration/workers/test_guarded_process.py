"""A guarded program never outlives its lease or its worker."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from workers.hosts import guarded_process

# A program with a child of its own, which ignores SIGTERM and prints both process ids.
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(os.getpid(), child.pid, flush=True)
time.sleep(60)
"""


def start(log: Path, program: str, seconds: float = 30) -> guarded_process.GuardedProcess:
    return guarded_process.start_guarded_process(
        [sys.executable, "-c", program], log=log, environment=os.environ, seconds=seconds
    )


def pids(log: Path) -> list[int]:
    deadline = time.monotonic() + 60
    while not (text := log.read_text().split("\n")[0] if log.exists() else ""):
        assert time.monotonic() < deadline, "the program printed nothing"
        time.sleep(0.02)
    return [int(word) for word in text.split()]


def has_ended(pid: int) -> bool:
    """Tell whether the process has ended; a zombie that has not been waited for has ended too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def assert_ended(found: list[int], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not all(has_ended(pid) for pid in found):
        assert time.monotonic() < deadline, f"still running: {[pid for pid in found if not has_ended(pid)]}"
        time.sleep(0.05)


def test_the_worker_receives_exit_status_and_output(tmp_path: Path) -> None:
    child = start(tmp_path / "log", "print('hello'); raise SystemExit(7)")
    assert child.wait(60) == 7
    assert (tmp_path / "log").read_text() == "hello\n"


def test_the_exit_status_of_a_killed_program_contains_the_signal(tmp_path: Path) -> None:
    child = start(tmp_path / "log", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert child.wait(60) == guarded_process.EXIT_SIGNAL_BASE + signal.SIGSEGV


def test_a_command_that_does_not_exist_is_reported_in_the_log(tmp_path: Path) -> None:
    child = guarded_process.start_guarded_process(
        ["/no/such"], log=tmp_path / "log", environment=os.environ, seconds=30
    )
    assert child.wait(60) == guarded_process.EXIT_START_FAILED
    assert "cannot start /no/such" in (tmp_path / "log").read_text()


def test_a_program_that_is_asked_to_stop_can_choose_its_exit_status(tmp_path: Path) -> None:
    child = start(
        tmp_path / "log",
        "import signal, sys, time\n"
        "signal.signal(15, lambda *_: sys.exit(75))\n"
        "print(1, flush=True)\n"
        "time.sleep(60)",
    )
    pids(tmp_path / "log")
    child.stop()
    assert child.wait(60) == 75


def test_kill_ends_every_process_of_the_group(tmp_path: Path) -> None:
    child = start(tmp_path / "log", STUBBORN)
    found = pids(tmp_path / "log")
    child.stop()
    assert child.wait(0.5) is None
    child.kill()
    assert_ended([*found, child.pid])


def test_a_program_is_killed_when_its_lease_ends(tmp_path: Path) -> None:
    child = start(tmp_path / "log", STUBBORN, seconds=1.5)
    found = pids(tmp_path / "log")
    assert child.wait(60) == guarded_process.EXIT_SIGNAL_BASE + signal.SIGKILL
    assert_ended(found)


def test_a_renewed_lease_keeps_the_program_alive(tmp_path: Path) -> None:
    child = start(tmp_path / "log", "import time; time.sleep(3)", seconds=2)
    child.extend(60)
    assert child.wait(60) == 0


def test_a_program_dies_with_its_worker(tmp_path: Path) -> None:
    worker = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, sys, time\nfrom pathlib import Path\nfrom workers.hosts import guarded_process\n"
            f"guarded_process.start_guarded_process([sys.executable, '-c', {STUBBORN!r}], "
            f"log=Path({str(tmp_path / 'log')!r}), "
            "environment=os.environ, seconds=60)\ntime.sleep(60)",
        ]
    )
    found = pids(tmp_path / "log")
    worker.kill()
    worker.wait()
    assert_ended(found)


def test_a_program_dies_with_its_guard(tmp_path: Path) -> None:
    child = start(tmp_path / "log", STUBBORN)
    program, _ = pids(tmp_path / "log")
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait(60) == -signal.SIGKILL
    assert_ended([program])
    for pid in pids(tmp_path / "log")[1:]:
        os.kill(pid, signal.SIGKILL)
