"""Goal: a program ends when it exceeds a limit of time, memory or disk, and the error names both.

Memory counts over all processes of a program, and address space that is only reserved does not count.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from app.storage.database import transaction
from app.tables import Run, RunStatus
from tests.integration.workers.conftest import execute_next, row
from trainers.configs import StageKind, StageLimits
from workers.hosts.resource_limits import measure_disk
from workers.hosts.worker import WorkerContext

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

MIB = 1 << 20
SLEEP = "signal.signal(15, lambda *_: sys.exit(75))\ntime.sleep(120)\n"
# The memory belongs to a process in a session of its own.
ALLOCATE = """
import subprocess
code = "import time; kept = bytearray(300 << 20); time.sleep(120)"
subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
time.sleep(120)
"""
FILL = "write('scratch/large', 'x' * (30 << 20))\ntime.sleep(120)\n"
# 0x4022 is MAP_PRIVATE, MAP_ANONYMOUS and MAP_NORESERVE.
RESERVE = "import mmap\nreserved = mmap.mmap(-1, 64 << 30, flags=0x4022)\n"


@pytest.fixture
def execute(worker: WorkerContext, submit: Callable[..., str]) -> Callable[..., Run]:
    """Execute a program with limits in its stage and return its run."""

    def run(body: str, **limits: float) -> Run:
        run_id = submit(body)
        with transaction() as session:
            found = session.get_one(Run, run_id)
            found.config = found.config | {"limits": limits or None}
        assert execute_next(worker)
        return row(run_id)

    return run


@pytest.mark.parametrize(
    ("body", "limit", "value", "code"),
    [
        (SLEEP, "max_seconds", 1, "time_limit"),
        ("signal.signal(15, signal.SIG_IGN)\ntime.sleep(120)", "max_seconds", 1, "time_limit"),
        (ALLOCATE, "max_memory_bytes", 200 * MIB, "memory_limit"),
        (FILL, "max_disk_bytes", 20 * MIB, "disk_limit"),
    ],
)
def test_a_program_that_exceeds_a_limit_fails_with_its_code(
    worker: WorkerContext, execute: Callable[..., Run], body: str, limit: str, value: int, code: str
) -> None:
    worker.settings.pause_grace_seconds = 1
    run = execute(body, **{limit: value})
    assert (run.status, run.attempt) == (RunStatus.failed, 1), "it must not be retried"
    assert run.error is not None and run.error["code"] == code
    assert f"{limit} in the stage's limits" in run.error["message"]
    assert "TUNESMITH_STAGE_LIMITS" in (run.error["hint"] or "")


def test_the_worker_s_own_limit_applies_where_it_is_lower(
    worker: WorkerContext, execute: Callable[..., Run]
) -> None:
    worker.settings.stage_limits = {StageKind.sft: StageLimits(max_seconds=1)}
    run = execute(SLEEP, max_seconds=60)
    assert run.error is not None
    assert "max_seconds in this worker's TUNESMITH_STAGE_LIMITS" in run.error["message"]


def test_address_space_that_is_only_reserved_is_not_memory(execute: Callable[..., Run]) -> None:
    run = execute(f"{RESERVE}time.sleep(2.5)\nsucceed()", max_memory_bytes=200 * MIB)
    assert run.status is RunStatus.succeeded


def test_a_result_that_was_written_before_the_limit_counts(execute: Callable[..., Run]) -> None:
    # A busy machine starts the program within this time.
    assert execute(f"succeed()\n{SLEEP}", max_seconds=5).status is RunStatus.succeeded


def test_a_file_with_two_names_occupies_the_disk_once(tmp_path: Path, database_url: str) -> None:
    (tmp_path / "one").write_bytes(b"x" * MIB)
    (tmp_path / "two").hardlink_to(tmp_path / "one")
    assert MIB <= measure_disk(tmp_path) < 2 * MIB
