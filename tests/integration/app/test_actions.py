"""Cancel, pause, resume and retry move the runs of a job, also while a worker changes them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.testclient import TestClient

from app.runs import lifecycle
from app.storage.database import transaction
from app.tables import Run, RunStatus

Make = Callable[..., list[Run]]


def act(client: TestClient, job_id: str, verb: str) -> tuple[int, list[str]]:
    """Post an action; return the status code and the statuses of the job's runs afterwards."""
    code = client.post(f"/api/v1/jobs/{job_id}/{verb}").status_code
    return code, [run["status"] for run in client.get(f"/api/v1/jobs/{job_id}").json()["runs"]]


@pytest.mark.parametrize(
    ("before", "verb", "code", "after"),
    [
        ("queued queued", "cancel", 200, "cancelled cancelled"),
        ("paused queued", "cancel", 200, "cancelled cancelled"),
        ("running queued queued", "cancel", 200, "cancelling cancelled cancelled"),
        ("pausing paused", "cancel", 200, "cancelling cancelled"),
        ("succeeded running", "cancel", 200, "succeeded cancelling"),
        ("succeeded succeeded", "cancel", 409, "succeeded succeeded"),
        ("failed cancelled", "cancel", 409, "failed cancelled"),
        ("queued queued", "pause", 200, "paused paused"),
        ("running queued", "pause", 200, "pausing paused"),
        ("cancelling cancelled", "pause", 409, "cancelling cancelled"),
        ("paused paused", "resume", 200, "queued queued"),
        ("pausing paused", "resume", 409, "pausing paused"),
        ("running", "retry", 409, "running"),
    ],
)
def test_each_action_moves_the_runs_that_it_may(
    client: TestClient, make_job: Make, before: str, verb: str, code: int, after: str
) -> None:
    job_id = make_job(*map(RunStatus, before.split()))[0].job_id
    assert act(client, job_id, verb) == (code, after.split())


@pytest.mark.parametrize("verb", ["cancel", "pause", "resume"])
def test_repeating_an_action_changes_nothing(client: TestClient, make_job: Make, verb: str) -> None:
    job_id = make_job(RunStatus.paused if verb == "resume" else RunStatus.running)[0].job_id
    assert act(client, job_id, verb) == act(client, job_id, verb)


def test_a_program_that_succeeds_during_a_cancellation_starts_no_later_stage(
    client: TestClient, make_job: Make
) -> None:
    first, _ = make_job(RunStatus.running, RunStatus.queued)
    act(client, first.job_id, "cancel")
    with transaction() as session:
        lifecycle.move(session, first.id, RunStatus.succeeded)
    assert client.get(f"/api/v1/jobs/{first.job_id}").json()["status"] == "cancelled"


def test_retry_queues_the_failed_run_and_those_that_ended_with_it(client: TestClient, make_job: Make) -> None:
    first, second, _ = make_job(RunStatus.succeeded, RunStatus.running, RunStatus.queued, failure_count=3)
    with transaction() as session:
        lifecycle.move(session, second.id, RunStatus.failed, values={"error": {"code": "x", "message": "m"}})
    assert act(client, first.job_id, "retry") == (200, ["succeeded", "queued", "queued"])
    runs = client.get(f"/api/v1/jobs/{first.job_id}").json()["runs"][1:]
    assert [(run["failure_count"], run["error"], run["finished_at"]) for run in runs] == [(0, None, None)] * 2


def test_a_run_that_is_claimed_during_its_cancellation_is_cancelled_as_running(
    client: TestClient, make_job: Make
) -> None:
    (run,) = make_job(RunStatus.queued)
    with ThreadPoolExecutor(1) as pool, transaction() as session:
        lifecycle.move(session, run.id, RunStatus.running)
        cancelling = pool.submit(act, client, run.job_id, "cancel")
        with pytest.raises(TimeoutError):
            cancelling.result(0.3)
        session.commit()
        assert cancelling.result() == (200, ["cancelling"])


def test_concurrent_cancellations_have_one_effect(client: TestClient, make_job: Make) -> None:
    job_id = make_job(RunStatus.running, RunStatus.queued)[0].job_id
    with ThreadPoolExecutor(6) as pool:
        codes = list(pool.map(lambda _: client.post(f"/api/v1/jobs/{job_id}/cancel").status_code, range(6)))
    assert codes == [200] * 6
    events = client.get(f"/api/v1/runs/{client.get(f'/api/v1/jobs/{job_id}').json()['runs'][0]['id']}/events")
    assert [event["data"]["status"] for event in events.json()["items"]] == ["cancelling"]
