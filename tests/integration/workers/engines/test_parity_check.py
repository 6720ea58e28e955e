"""The parity check as a program of a deployment: its report, its failures, and its end with the lease."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.runs.lifecycle import StaleAttempt
from app.tables import Deployment
from serving.engines import find_engine
from tests.integration.workers.engines.conftest import is_running, wait_until
from trainers.configs import EngineKind, Queue
from workers.engines.parity_check import ParityTarget, check_parity
from workers.hosts.lease import Lease
from workers.hosts.worker import WorkerContext
from workers.inputs.models import ResolvedModel

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

PROGRAM = f"""#!{sys.executable}
import json, os, pathlib, sys, time
report = pathlib.Path(sys.argv[sys.argv.index("--report") + 1])
report.with_suffix(".arguments").write_text(json.dumps([os.getpid(), *sys.argv]))
"""
Check = Callable[..., dict[str, Any]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "engine"
    folder.mkdir()
    return folder


@pytest.fixture
def check(worker: WorkerContext, base: str, folder: Path) -> Check:
    """Return a function that compares a deployment of the base by a program with this body."""

    def compare(body: str, poll: Callable[[], None] = lambda: None, **values: Any) -> dict[str, Any]:
        program = Path(worker.settings.trainer_python)
        program.write_text(PROGRAM + body)
        program.chmod(0o755)
        fields = {"options": {}, "engine": EngineKind.hf, "queue": Queue.cpu, **values}
        deployment = Deployment(id="deployment_1", name="one", base=base, engine_key="", **fields)
        target = ParityTarget(
            find_engine(EngineKind.hf), "http://127.0.0.1:9", "base", ResolvedModel(base, None, base, None)
        )
        lease = Lease("one", 60, time.monotonic(), lambda session: None)
        return check_parity(worker, deployment, target, folder, lease, poll)

    return compare


def arguments(folder: Path) -> list[Any]:
    (file,) = folder.glob("*.arguments")
    written: list[Any] = json.loads(file.read_text())
    return written


def test_a_report_that_agrees_passes(check: Check, folder: Path, base: str) -> None:
    report = check('report.write_text(json.dumps({"passed": True, "difference": None}))')
    assert (report["passed"], report["message"]) == (True, "They agree.")
    _, *command = arguments(folder)
    assert command[command.index("--base") + 1] == base
    assert "--adapter" not in command and "--precision" not in command


def test_a_report_that_differs_has_the_message_of_the_difference(check: Check) -> None:
    difference = {"message": "token 3 differs"}
    report = check(f"report.write_text(json.dumps({{'passed': False, 'difference': {difference}}}))")
    assert (report["passed"], report["message"]) == (False, "token 3 differs")


def test_the_precision_of_the_engine_is_compared(check: Check, folder: Path) -> None:
    check("sys.exit(1)", options={"dtype": "bfloat16"})
    command = arguments(folder)
    assert command[command.index("--precision") + 1] == "bfloat16"


def test_a_comparison_that_ends_without_a_report_fails_with_the_end_of_its_log(check: Check) -> None:
    report = check("print('no weights'); sys.exit(3)")
    assert not report["passed"]
    assert "status 3" in report["message"] and "no weights" in report["message"]


def test_an_old_report_is_not_taken_for_a_new_one(check: Check, folder: Path) -> None:
    (folder / "parity-deployment_1.json").write_text('{"passed": true, "difference": null}')
    assert not check("sys.exit(3)")["passed"]


def test_a_deployment_that_must_leave_ends_the_comparison(check: Check, folder: Path) -> None:
    def leave_once_started() -> None:
        if list(folder.glob("*.arguments")):
            raise StaleAttempt("lost the lease")

    with pytest.raises(StaleAttempt):
        check("time.sleep(1000)", leave_once_started)
    process = arguments(folder)[0]
    wait_until(lambda: not is_running(process))
