"""Queues: what their workers can hold, and the runs that wait for them with the reasons.

Method: rows of workers and runs, and the API's responses.
"""

from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.storage.database import transaction
from app.tables import Run, RunStatus, Worker
from trainers.configs import Queue, StageKind

Make = Callable[..., Any]
GPUS = [{"name": "NVIDIA H200", "uuid": f"GPU-{n}", "memory_bytes": 141 << 30} for n in range(8)]

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def read_queue(client: TestClient, name: str) -> dict[str, Any]:
    """Return one of the queues."""
    return next(one for one in client.get("/api/v1/queues").json()["items"] if one["queue"] == name)


def test_a_queue_counts_runs_by_what_they_wait_for(client: TestClient, make_job: Make) -> None:
    make_job(RunStatus.running, RunStatus.queued)
    make_job(RunStatus.queued, RunStatus.queued)
    make_job(RunStatus.succeeded)
    found = read_queue(client, "cpu")
    assert [found[name] for name in ("workers", "running", "waiting", "later")] == [0, 1, 1, 2]


def test_gpus_that_two_workers_of_a_host_share_count_once(
    client: TestClient, make_worker: Make, make_job: Make
) -> None:
    values = {"queues": [Queue.cuda], "slots": {"cuda": 8}, "hardware": {"gpus": GPUS}}
    first, _, elsewhere = make_worker(**values), make_worker(**values), make_worker(host="other", **values)
    (run,) = make_job(RunStatus.running, queue=Queue.cuda, device_count=3)
    with transaction() as session:
        session.get_one(Run, run.id).worker_id = first.id
    found = read_queue(client, "cuda")
    assert elsewhere.host != first.host
    assert [found[name] for name in ("workers", "slots", "free_slots")] == [3, 16, 13]


def test_waiting_runs_are_in_the_order_of_their_start_with_the_reasons_of_their_jobs(
    client: TestClient, make_worker: Make, make_job: Make
) -> None:
    worker: Worker = make_worker()
    (running,) = make_job(RunStatus.running)
    with transaction() as session:
        session.get_one(Run, running.id).worker_id = worker.id
    old, urgent, young = (make_job(RunStatus.queued, priority=n)[0] for n in (0, 5, 0))
    shown = client.get("/api/v1/queues/cpu/waiting").json()["items"]
    assert [run["id"] for run in shown] == [urgent.id, old.id, young.id]
    assert shown[0]["waiting_for"] == "This run is the next one; the only worker on queue cpu is busy."
    for run in shown:
        assert client.get(f"/api/v1/runs/{run['id']}").json()["waiting_for"] == run["waiting_for"]


def test_a_busy_worker_is_not_called_the_only_one_of_a_queue_with_several(
    client: TestClient, make_worker: Make, make_job: Make
) -> None:
    make_worker(slots={"cpu": 0})
    make_worker(stages=[StageKind.gate])
    (run,) = make_job(RunStatus.queued)
    reason = client.get(f"/api/v1/runs/{run.id}").json()["waiting_for"]
    busy = "the only one of 2 workers on queue cpu that can take it is busy"
    assert reason == f"This run is the next one; {busy}."


def test_each_waiting_run_is_on_one_page(client: TestClient, make_worker: Make, make_job: Make) -> None:
    make_worker(slots={"cpu": 0})
    made = [make_job(RunStatus.queued, priority=n % 2)[0].id for n in range(5)]
    seen: list[dict[str, Any]] = []
    after: dict[str, str] = {}
    while page := client.get("/api/v1/queues/cpu/waiting", params={"limit": 2, **after}).json():
        seen += page["items"]
        if page["next"] is None:
            break
        after = {"after": page["next"]}
    assert sorted(run["id"] for run in seen) == sorted(made)
    assert [run["waiting_for"][:5] for run in seen[1:]] == ["1 run", "2 run", "3 run", "4 run"]


def test_a_page_after_a_deleted_run_is_not_found(client: TestClient) -> None:
    missing = client.get("/api/v1/queues/cpu/waiting", params={"after": f"run_{'0' * 26}"})
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "run_not_found")


def test_workers_that_have_stopped_in_order_can_be_left_out(client: TestClient, make_worker: Make) -> None:
    kept, stopped = make_worker(), make_worker()
    with transaction() as session:
        row = session.get_one(Worker, stopped.id)
        row.stopped_at = row.last_seen_at
    shown = client.get("/api/v1/workers", params={"stopped": False}).json()["items"]
    assert [worker["id"] for worker in shown] == [kept.id]
