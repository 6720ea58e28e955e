"""Goal: a job shows the warnings of its runs. Method: events as workers write them; the plan of the query."""

from collections.abc import Callable
from threading import get_ident

import pytest
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy import text
from starlette.testclient import TestClient

from app.runs.service import MAX_WARNINGS, list_warnings
from app.storage.database import get_engine, read_session, transaction
from app.tables import Event, EventType, Run, RunStatus


def add_events(run: Run, warnings: int, first_seq: int = 1) -> None:
    with transaction() as session:
        for number in range(warnings):
            data = {"code": "loss_rises", "message": f"Warning {number}."}
            seq = first_seq + 2 * number
            session.add(Event(run_id=run.id, seq=seq, attempt=1, type=EventType.warning, data=data))
            metrics = Event(run_id=run.id, seq=seq + 1, attempt=1, type=EventType.metrics, data={"loss": 1.0})
            session.add(metrics)


def test_a_job_shows_the_warnings_of_all_its_runs_in_order(
    client: TestClient, make_job: Callable[..., list[Run]]
) -> None:
    sft, dpo, _ = make_job(RunStatus.succeeded, RunStatus.running, RunStatus.queued, attempt=1, event_seq=9)
    add_events(dpo, 1)
    add_events(sft, 2)
    with transaction() as session:
        data = {"code": "tracking_incomplete", "message": "Metrics are missing.", "hint": "Look there."}
        session.add(Event(run_id=dpo.id, seq=9, attempt=1, type=EventType.warning, data=data))
    job = client.get(f"/api/v1/jobs/{sft.job_id}").json()
    shown = [(one["run_id"], one["run"], one["code"], one["message"]) for one in job["warnings"]]
    assert shown == [
        (sft.id, "stage0", "loss_rises", "Warning 0."),
        (sft.id, "stage0", "loss_rises", "Warning 1."),
        (dpo.id, "stage1", "loss_rises", "Warning 0."),
        (dpo.id, "stage1", "tracking_incomplete", "Metrics are missing. Look there."),
    ]
    assert job["further_warnings"] == 0


def test_the_number_of_shown_warnings_is_bounded_and_the_rest_is_counted(
    client: TestClient, make_job: Callable[..., list[Run]]
) -> None:
    (run,) = make_job(RunStatus.running, attempt=1, event_seq=9)
    add_events(run, MAX_WARNINGS + 7)
    job = client.get(f"/api/v1/jobs/{run.job_id}").json()
    assert (len(job["warnings"]), job["further_warnings"]) == (MAX_WARNINGS, 7)
    others = client.get(f"/api/v1/runs/{run.id}/events?type=warning&limit=100").json()["items"]
    assert len(others) == MAX_WARNINGS + 7


def test_a_job_without_warnings_has_none(client: TestClient, make_job: Callable[..., list[Run]]) -> None:
    (run,) = make_job(RunStatus.running, attempt=1, event_seq=9)
    job = client.get(f"/api/v1/jobs/{run.job_id}").json()
    assert (job["warnings"], job["further_warnings"]) == ([], 0)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_warnings_are_counted_by_their_index_and_not_by_reading_every_event(
    client: TestClient, make_job: Callable[..., list[Run]]
) -> None:
    (run,) = make_job(RunStatus.running, attempt=1, event_seq=9)
    add_events(run, 3)
    statements: list[tuple[str, tuple[str, ...]]] = []
    thread = get_ident()

    def record(_: object, __: object, sql: str, parameters: tuple[str, ...], *___: object) -> None:
        if get_ident() == thread:  # Threads of the service read the database as well.
            statements.append((sql, parameters))

    sqlalchemy_event.listen(get_engine(), "before_cursor_execute", record)
    try:
        with read_session() as session:
            list_warnings(session, [run])
            counting, parameters = next(one for one in statements if "count(*)" in one[0])
            plan = session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {counting}", parameters).all()
            assert session.execute(text("SELECT 1")).scalar() == 1
    finally:
        sqlalchemy_event.remove(get_engine(), "before_cursor_execute", record)
    assert "ix_event_warning" in str(plan)
