"""A supervised process: which of its ends are attributed to a fault."""

import signal
import time
from pathlib import Path

import pytest

from tests.chaos.process import ManagedProcess


@pytest.fixture
def process(tmp_path: Path) -> ManagedProcess:
    waits = [
        "-c",
        "import signal, sys; signal.signal(15, lambda *_: sys.exit()); print(flush=True); signal.pause()",
    ]
    process = ManagedProcess("api-1", waits, {}, tmp_path / "api-1.log")
    process.start()
    wait_until_up(process)
    return process


def wait_until_up(process: ManagedProcess) -> None:
    while not process.log.stat().st_size:
        time.sleep(0.01)


def wait_until_restarted(process: ManagedProcess) -> None:
    pid = process.pid
    while process.pid == pid:
        process.restart_if_ended()
        time.sleep(0.01)
    process.kill()


def test_an_end_by_itself_is_recorded(process: ManagedProcess) -> None:
    process._popen.kill()  # type: ignore[union-attr]
    wait_until_restarted(process)
    assert [(end.name, end.status) for end in process.unexpected_exits] == [("api-1", -signal.SIGKILL)]


def test_an_end_by_a_fault_is_not_recorded(process: ManagedProcess) -> None:
    assert process.end(signal.SIGTERM)
    wait_until_restarted(process)
    assert process.unexpected_exits == []


def test_a_stop_that_was_requested_during_another_fault_is_not_recorded(process: ManagedProcess) -> None:
    with process.may_end():
        process.end(signal.SIGTERM)
    wait_until_restarted(process)
    assert process.unexpected_exits == []


def test_an_end_during_a_fault_is_not_recorded_after_the_fault(process: ManagedProcess) -> None:
    with process.may_end():
        process._popen.kill()  # type: ignore[union-attr]
        process._popen.wait()  # type: ignore[union-attr]
    wait_until_restarted(process)
    assert process.unexpected_exits == []
