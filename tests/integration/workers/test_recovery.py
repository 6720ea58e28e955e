"""What a worker mends by itself, as far as rows tell; the full disk itself is in `tests/e2e`."""

from collections.abc import Callable

import pytest

from app.jobs import actions
from app.runs import lifecycle
from app.storage.database import transaction
from app.tables import RunStatus
from tests.integration.workers.conftest import row
from trainers.configs import Queue
from workers.hosts.worker import WorkerContext
from workers.runs import recovery


@pytest.fixture
def waiting(host: WorkerContext, submit: Callable[..., str]) -> str:
    """A run that a full disk has paused, though there is room by now."""
    run_id = submit("")
    with transaction() as session:
        lifecycle.claim(session, host.worker_id, [Queue.cpu], host.stages, 60)
        error = recovery.disk_full_error("The disk is full.")
        lifecycle.move(session, run_id, RunStatus.paused, values={"error": error})
    return run_id


def test_a_run_without_room_goes_on_by_itself_once_there_is_some(host: WorkerContext, waiting: str) -> None:
    recovery.release_disk_waits(host)
    assert (row(waiting).status, row(waiting).error) == (RunStatus.queued, None)


def test_a_person_s_pause_of_a_run_without_room_holds(host: WorkerContext, waiting: str) -> None:
    with transaction() as session:
        actions.pause(session, row(waiting).job_id)
    recovery.release_disk_waits(host)
    assert (row(waiting).status, row(waiting).error) == (RunStatus.paused, None)
