"""Goal: runs are listed by every filter, newest first. Method: a few jobs; the plan of the query."""

from collections.abc import Callable
from threading import get_ident

import pytest
from sqlalchemy import event as sqlalchemy_event
from starlette.testclient import TestClient

from app.http.paging import PageQuery
from app.runs.listing import RunFilters, list_runs
from app.storage.database import get_engine, read_session, transaction
from app.tables import Run, RunStatus, Worker
from trainers.configs import Queue, StageKind

Make = Callable[..., list[Run]]


def listed(client: TestClient, **filters: str | int) -> list[str]:
    response = client.get("/api/v1/runs", params=filters)
    assert response.status_code == 200, response.text
    return [run["id"] for run in response.json()["items"]]


def test_runs_are_listed_by_status_stage_queue_job_and_worker(client: TestClient, make_job: Make) -> None:
    sft, evaluate = make_job(RunStatus.succeeded, RunStatus.running)
    [other] = make_job(RunStatus.failed)
    with transaction() as session:
        worker = Worker(name="w", host="h", pid=1, queues=[Queue.cpu])
        session.add(worker)
        session.flush()
        row = session.get_one(Run, evaluate.id)
        row.worker_id, row.stage, row.queue = worker.id, StageKind.evaluate, Queue.cuda
        worker_id = worker.id
    newest_first = sorted([sft.id, evaluate.id, other.id], reverse=True)
    assert listed(client) == newest_first
    assert listed(client, status="failed") == [other.id]
    assert listed(client, stage="evaluate") == [evaluate.id]
    assert listed(client, queue="cuda") == [evaluate.id]
    assert listed(client, worker_id=worker_id) == [evaluate.id]
    assert sorted(listed(client, job_id=sft.job_id)) == sorted([sft.id, evaluate.id])
    assert listed(client, job_id=sft.job_id, status="succeeded") == [sft.id]
    assert listed(client, status="paused") == []


def test_pages_contain_every_run_once(client: TestClient, make_job: Make) -> None:
    runs = [run.id for _ in range(3) for run in make_job(RunStatus.queued, RunStatus.queued)]
    first = client.get("/api/v1/runs", params={"limit": 4, "status": "queued"}).json()
    rest = client.get("/api/v1/runs", params={"limit": 4, "status": "queued", "after": first["next"]}).json()
    assert [run["id"] for run in first["items"] + rest["items"]] == sorted(runs, reverse=True)
    assert rest["next"] is None


@pytest.mark.parametrize("filters", [{"status": "done"}, {"stage": "x"}, {"job_id": "x"}, {"worker_id": "'"}])
def test_a_filter_with_an_impossible_value_is_refused(client: TestClient, filters: dict[str, str]) -> None:
    response = client.get("/api/v1/runs", params=filters)
    assert (response.status_code, response.json()["error"]["fields"][0]["field"]) == (422, *filters)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("filters", "index"),
    [
        (RunFilters(status=RunStatus.failed), "ix_run_status_id"),
        (RunFilters(stage=StageKind.grpo), "ix_run_stage_id"),
        (RunFilters(queue=Queue.mlx), "ix_run_queue_id"),
        (RunFilters(worker_id="worker_1"), "ix_run_worker_id"),
    ],
)
def test_a_page_walks_an_index_and_sorts_nothing(
    client: TestClient, make_job: Make, filters: RunFilters, index: str
) -> None:
    make_job(RunStatus.queued)
    statements: list[tuple[str, tuple[str, ...]]] = []
    thread = get_ident()

    def record(_: object, __: object, sql: str, parameters: tuple[str, ...], *___: object) -> None:
        if get_ident() == thread:  # Threads of the service read the database as well.
            statements.append((sql, parameters))

    sqlalchemy_event.listen(get_engine(), "before_cursor_execute", record)
    try:
        with read_session() as session:
            list_runs(session, PageQuery(after="run_z"), filters)
            sql, parameters = statements[-1]
            plan = session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", parameters).all()
    finally:
        sqlalchemy_event.remove(get_engine(), "before_cursor_execute", record)
    [step] = [row[-1] for row in plan]
    assert index in step
