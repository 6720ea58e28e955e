"""How many runs a worker executes at once, and when it looks for the next one."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.scheduling.incidents import list_problems
from app.tables import RunStatus
from app.workers.gpus import Gpu
from tests.integration.workers.conftest import row
from tests.integration.workers.test_execute import deploy_stage, until
from trainers.configs import Queue
from workers.hosts.devices import DevicePool
from workers.hosts.worker import WorkerContext
from workers.runs.claim import ClaimedRun, claim_next
from workers.runs.dispatcher import RunDispatcher

Submit = Callable[..., str]
HOUR = 3600
# Ends when its worker has a file with the name of its run.
PROGRAM = """
folder = pathlib.Path(__file__).parent
while not (folder / f"{run_dir.parent.name}.end").exists():
    time.sleep(0.02)
succeed()
"""

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def dispatcher(worker: WorkerContext, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunDispatcher]:
    """Yield a dispatcher that does not poll, so that only a wake-up starts the next run."""
    monkeypatch.setattr("workers.runs.execute.POLL_SECONDS", 0.05)
    worker.settings.sweep_seconds = HOUR
    dispatcher = RunDispatcher(worker)
    dispatcher.start()
    yield dispatcher
    worker.stopping.set()
    dispatcher.join()


def end(worker: WorkerContext, run_id: str) -> None:
    """Let the run's program end, and wait until the run has succeeded."""
    (worker.settings.data_dir / f"{run_id}.end").touch()
    until(lambda: row(run_id).status is RunStatus.succeeded)


def statuses(*run_ids: str) -> list[RunStatus]:
    return [row(run_id).status for run_id in run_ids]


def test_a_cpu_executes_one_run_at_a_time_and_a_deploy_stage_next_to_it(
    worker: WorkerContext, submit: Submit, dispatcher: RunDispatcher
) -> None:
    first, second = submit(PROGRAM), submit(PROGRAM)
    deploy = submit(PROGRAM, **{**deploy_stage("hub/model"), "queue": Queue.cpu})
    dispatcher.fill()
    assert statuses(first, second, deploy) == [RunStatus.running, RunStatus.queued, RunStatus.running]
    end(worker, first)
    # The end of the first run has woken the dispatcher.
    until(lambda: row(second).status is RunStatus.running)
    end(worker, second)


def test_a_setting_allows_more_runs_on_a_cpu(
    worker: WorkerContext, submit: Submit, dispatcher: RunDispatcher
) -> None:
    worker.settings.max_runs_per_queue = 2
    runs = [submit(PROGRAM) for _ in range(3)]
    dispatcher.fill()
    assert statuses(*runs) == [RunStatus.running, RunStatus.running, RunStatus.queued]
    for run_id in runs:
        end(worker, run_id)


def test_gpus_that_an_engine_releases_start_the_run_that_waits_for_them(
    worker: WorkerContext, submit: Submit, dispatcher: RunDispatcher, tmp_path: Path
) -> None:
    gpus = [Gpu(index, f"GPU-{index}", "H200", 1) for index in range(2)]
    worker.devices = DevicePool(gpus, tmp_path / "locks")
    engine = worker.devices.take(Queue.cuda)
    assert engine is not None
    large, small = (submit(PROGRAM, queue=Queue.cuda, device_count=count) for count in (2, 1))
    dispatcher.fill()
    assert statuses(large, small) == [RunStatus.queued, RunStatus.running]
    end(worker, small)
    assert row(large).status is RunStatus.queued
    worker.release_devices(engine)
    until(lambda: row(large).status is RunStatus.running)
    end(worker, large)


def test_a_full_worker_waits_before_it_takes_the_next_notification(
    worker: WorkerContext, submit: Submit, dispatcher: RunDispatcher
) -> None:
    worker.queues = [Queue.cpu]
    run_id = submit(PROGRAM)
    dispatcher.fill()
    (worker.settings.data_dir / f"{run_id}.end").touch()
    dispatcher.wait_for_room()
    assert row(run_id).status is RunStatus.succeeded


def test_a_store_that_fails_costs_one_run_one_failure_and_the_others_wait(
    worker: WorkerContext, submit: Submit, dispatcher: RunDispatcher
) -> None:
    runs = [submit("succeed()") for _ in range(3)]
    store, away = worker.settings.data_dir / "artifacts", worker.settings.data_dir / "away"
    store.rename(away)
    store.write_text("a file in place of the folder")
    for _ in range(4):
        dispatcher.fill()
        until(lambda: RunStatus.running not in statuses(*runs))
    assert sum(row(run_id).failure_count for run_id in runs) == 1
    assert any(problem.startswith("artifact store: ") for problem in list_problems())
    store.unlink()
    away.rename(store)
    dispatcher.fill()
    until(lambda: set(statuses(*runs)) == {RunStatus.succeeded})
    assert list_problems() == []


def test_a_worker_that_stops_waits_for_a_run_that_is_being_claimed(
    worker: WorkerContext, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, dispatcher = submit(PROGRAM), RunDispatcher(worker)
    is_claiming, may_claim = threading.Event(), threading.Event()

    def claim_slowly(*arguments: Any) -> ClaimedRun | None:
        is_claiming.set()
        may_claim.wait(60)
        return claim_next(*arguments)

    monkeypatch.setattr("workers.nodes.offers.claim_next", claim_slowly)
    notification = threading.Thread(target=dispatcher.fill)
    notification.start()
    assert is_claiming.wait(60)
    worker.stopping.set()
    dispatcher.start()
    threading.Timer(0.3, may_claim.set).start()
    dispatcher.join()
    assert row(run_id).status is RunStatus.queued and row(run_id).attempt == 1
    notification.join()
