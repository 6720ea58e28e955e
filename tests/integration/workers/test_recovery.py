"""Failures that a worker recovers from; the full disk itself is in `tests/e2e`."""

import json
from collections.abc import Callable

import numpy as np
import pytest
from safetensors.numpy import save_file
from sqlmodel import select

from app.jobs import actions
from app.runs import lifecycle
from app.runs.attempt_outcome import AttemptOutcome
from app.runs.claimable import FreeResources
from app.storage.database import transaction
from app.tables import Run, RunStatus
from tests.integration.workers.conftest import execute_next, row
from trainers.configs import Queue, StageKind
from workers.hosts.worker import WorkerContext
from workers.runs.checkpoints import ADAPTER_SHARE
from workers.runs.results import DataDiskFull

NEEDED_BYTES = 1 << 30


def claim(worker: WorkerContext, disk_bytes: int) -> Run | None:
    with transaction() as session:
        for run in session.exec(select(Run)):
            run.claimable_at = None
        free = FreeResources(gpus=0, disk_bytes=disk_bytes)
        return lifecycle.claim(session, worker.worker_id, [Queue.cpu], list(StageKind), 60, free)


def end_with_full_disk(worker: WorkerContext, run: Run) -> None:
    with transaction() as session:
        end = AttemptOutcome(DataDiskFull("The disk is full."), needed_disk_bytes=NEEDED_BYTES)
        lifecycle.end_attempt(session, run.id, end, lifecycle.lease_guards(run.attempt), 3)


@pytest.fixture
def waiting(worker: WorkerContext, submit: Callable[..., str]) -> str:
    """Return a run that waits for disk space."""
    submit("")
    run = claim(worker, 0)
    assert run is not None
    end_with_full_disk(worker, run)
    return run.id


def test_a_run_that_filled_the_disk_is_claimed_where_there_is_room(
    worker: WorkerContext, waiting: str
) -> None:
    error = row(waiting).error
    assert (row(waiting).status, error and error["code"]) == (RunStatus.queued, "disk_full")
    assert claim(worker, NEEDED_BYTES - 1) is None
    assert claim(worker, NEEDED_BYTES) is not None
    assert (row(waiting).error, row(waiting).needed_disk_bytes) == (None, None)


def test_a_run_that_filled_the_disk_before_its_first_checkpoint_waits_for_room_for_one(
    worker: WorkerContext, submit: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.runs.recovery.MIN_FREE_BYTES", 1)
    weights = worker.settings.data_dir / "models" / "base" / "model.safetensors"
    save_file({"weight": np.zeros(1000)}, weights)
    error = json.dumps({"code": "disk_full", "message": "The disk is full.", "hint": "Free some space."})
    run_id = submit(f"write('error.json', {error!r})\nraise SystemExit(1)")
    execute_next(worker)
    expected = int(ADAPTER_SHARE * weights.stat().st_size)
    assert (row(run_id).status, row(run_id).needed_disk_bytes) == (RunStatus.queued, expected)


def test_a_person_s_pause_of_a_run_that_waits_for_disk_space_holds(
    worker: WorkerContext, waiting: str
) -> None:
    with transaction() as session:
        actions.pause(session, row(waiting).job_id)
    assert claim(worker, NEEDED_BYTES) is None
    assert (row(waiting).status, row(waiting).error) == (RunStatus.paused, None)


def test_a_run_that_fills_the_disk_while_it_is_paused_stays_paused(
    worker: WorkerContext, submit: Callable[..., str]
) -> None:
    submit("")
    run = claim(worker, 0)
    assert run is not None
    with transaction() as session:
        lifecycle.move(session, run.id, RunStatus.pausing)
    end_with_full_disk(worker, run)
    assert row(run.id).status is RunStatus.paused
