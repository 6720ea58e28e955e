"""A guarded program never outlives its lease or its worker."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from workers.hosts import guarded_process

# A program with a child of its own, which ignores SIGTERM and tells both process ids.
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


def gone(pid: int) -> bool:
    """Whether the process has ended; a zombie that nobody has waited for has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def assert_gone(found: list[int], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not all(gone(pid) for pid in found):
        assert time.monotonic() < deadline, f"still there: {[pid for pid in found if not gone(pid)]}"
        time.sleep(0.05)


def test_exit_status_and_output_reach_the_worker(tmp_path: Path) -> None:
    child = start(tmp_path / "log", "print('hello'); raise SystemExit(7)")
    assert child.wait(60) == 7
    assert (tmp_path / "log").read_text() == "hello\n"


def test_status_of_a_killed_program_tells_the_signal(tmp_path: Path) -> None:
    child = start(tmp_path / "log", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert child.wait(60) == guarded_process.EXIT_SIGNAL_BASE + signal.SIGSEGV


def test_command_that_does_not_exist_is_told_in_the_log(tmp_path: Path) -> None:
    child = guarded_process.start_guarded_process(
        ["/no/such"], log=tmp_path / "log", environment=os.environ, seconds=30
    )
    assert child.wait(60) == guarded_process.EXIT_START_FAILED
    assert "cannot start /no/such" in (tmp_path / "log").read_text()


def test_stop_is_a_request_that_the_program_may_answer(tmp_path: Path) -> None:
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


def test_kill_leaves_no_process_of_the_group(tmp_path: Path) -> None:
    child = start(tmp_path / "log", STUBBORN)
    found = pids(tmp_path / "log")
    child.stop()
    assert child.wait(0.5) is None
    child.kill()
    assert_gone([*found, child.pid])


def test_program_is_killed_when_its_lease_runs_out(tmp_path: Path) -> None:
    child = start(tmp_path / "log", STUBBORN, seconds=1.5)
    found = pids(tmp_path / "log")
    assert child.wait(60) == guarded_process.EXIT_SIGNAL_BASE + signal.SIGKILL
    assert_gone(found)


def test_renewed_lease_lets_the_program_go_on(tmp_path: Path) -> None:
    child = start(tmp_path / "log", "import time; time.sleep(3)", seconds=2)
    child.extend(60)
    assert child.wait(60) == 0


def test_killed_worker_takes_its_program_along(tmp_path: Path) -> None:
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
    assert_gone(found)


def test_killed_guard_takes_its_program_along(tmp_path: Path) -> None:
    child = start(tmp_path / "log", STUBBORN)
    program, _ = pids(tmp_path / "log")
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait(60) == -signal.SIGKILL
    assert_gone([program])
    for pid in pids(tmp_path / "log")[1:]:
        os.kill(pid, signal.SIGKILL)
