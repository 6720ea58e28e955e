"""Stages that need others than the one before: which start, which end with another, and what is refused."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlmodel import select
from starlette.testclient import TestClient

from app.runs import lifecycle
from app.scheduling import queue
from app.storage.database import transaction
from app.tables import Dataset, Run, RunStatus, Worker
from trainers.configs import Queue, StageKind

PREPARE: dict[str, Any] = {"stage": "prepare", "dataset": "rows", "split": {"test": 1}}
FAILED = {"error": {"code": "config_invalid", "message": "It failed."}}


@pytest.fixture
def rows(make_dataset: Callable[..., Dataset]) -> Dataset:
    """Return a stored dataset called `rows`."""
    return make_dataset("rows")


def stage(name: str, *needs: str, **values: Any) -> dict[str, Any]:
    """Return a stage that needs others."""
    return {**PREPARE, "name": name, "needs": list(needs), **values}


def post(client: TestClient, *stages: dict[str, Any]) -> dict[str, Any]:
    """Post a job and return the response."""
    return dict(client.post("/api/v1/jobs", json={"name": "job", "stages": list(stages)}).json())


def claim_names(worker: Worker) -> list[str]:
    """Claim all runs that can start, and return their names."""
    names = []
    with transaction() as session:
        while run := lifecycle.claim(session, worker.id, [Queue.cpu], list(StageKind), 30):
            names.append(run.name)
    return names


def end(job: dict[str, Any], name: str, to: RunStatus, **values: Any) -> None:
    """End a run of a job."""
    with transaction() as session:
        run = session.exec(select(Run).where(Run.job_id == job["id"], Run.name == name)).one()
        lifecycle.move(session, run.id, to, values=values, data=values)


def statuses(client: TestClient, job: dict[str, Any]) -> dict[str, str]:
    """Return the status of the job, and that of each run by its name."""
    view = client.get(f"/api/v1/jobs/{job['id']}").json()
    return {"job": view["status"], **{run["name"]: run["status"] for run in view["runs"]}}


def test_stages_that_do_not_need_each_other_run_side_by_side(
    client: TestClient, rows: Dataset, make_worker: Callable[..., Worker]
) -> None:
    worker = make_worker()
    job = post(client, stage("a"), stage("b"), stage("c", "a"), stage("d", "b", "c"))
    assert [run["needs"] for run in job["runs"]] == [[], [], ["a"], ["b", "c"]]
    assert claim_names(worker) == ["a", "b"]
    end(job, "a", RunStatus.succeeded)
    assert claim_names(worker) == ["c"]
    end(job, "b", RunStatus.succeeded)
    assert claim_names(worker) == []
    waiting = client.get(f"/api/v1/jobs/{job['id']}").json()["runs"][3]["waiting_for"]
    assert waiting == "Waits for the stage 'c', which is running."
    end(job, "c", RunStatus.succeeded)
    assert claim_names(worker) == ["d"]


def test_a_failure_ends_what_needs_it_and_a_retry_restarts_exactly_that(
    client: TestClient, rows: Dataset, make_worker: Callable[..., Worker]
) -> None:
    job = post(client, stage("a"), stage("b"), stage("c", "a"), stage("d", "c"), stage("e", "b"))
    claim_names(make_worker())
    end(job, "a", RunStatus.failed, **FAILED)
    ended = {"a": "failed", "c": "cancelled", "d": "cancelled"}
    assert statuses(client, job) == {**ended, "job": "running", "b": "running", "e": "queued"}
    end(job, "b", RunStatus.succeeded)
    assert client.post(f"/api/v1/jobs/{job['id']}/retry").status_code == 200
    after = statuses(client, job)
    assert after.pop("b") == "succeeded" and set(after.values()) == {"queued"}


def test_a_job_fails_only_after_its_independent_branches_have_ended(
    client: TestClient, rows: Dataset, make_worker: Callable[..., Worker]
) -> None:
    job = post(client, stage("a"), stage("b"))
    claim_names(make_worker())
    end(job, "a", RunStatus.failed, **FAILED)
    end(job, "b", RunStatus.succeeded)
    view = client.get(f"/api/v1/jobs/{job['id']}").json()
    assert (view["status"], view["error"]["code"]) == ("failed", "config_invalid")


def test_a_success_notifies_the_queues_of_all_runs_that_may_start(
    client: TestClient, rows: Dataset, make_worker: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    notified: list[Queue] = []
    monkeypatch.setattr(queue.get_notifier(), "request", notified.append)
    job = post(client, stage("a"), stage("b", "a", queue="cuda"), stage("c", "a", queue="mlx"), stage("d"))
    assert notified == [Queue.cpu]
    claim_names(make_worker())
    end(job, "a", RunStatus.succeeded)
    assert sorted(notified[1:]) == [Queue.cuda, Queue.mlx]


@pytest.mark.parametrize(("verb", "after"), [("pause", "paused"), ("cancel", "cancelled")])
def test_an_action_applies_to_every_branch(
    client: TestClient, rows: Dataset, make_worker: Callable[..., Worker], verb: str, after: str
) -> None:
    job = post(client, stage("a"), stage("b", queue="cuda"), stage("c", "a"))
    claim_names(make_worker())
    assert client.post(f"/api/v1/jobs/{job['id']}/{verb}").status_code == 200
    active = {"pause": "pausing", "cancel": "cancelling"}[verb]
    assert statuses(client, job) == {"job": active, "a": active, "b": after, "c": after}


@pytest.mark.parametrize(
    ("stages", "field", "words"),
    [
        ([stage("a", "b"), stage("b")], "stages.0.needs.0", "'b' comes after this one"),
        ([stage("a"), stage("b", "b")], "stages.1.needs.0", "is this stage itself"),
        ([stage("a"), stage("b", "c")], "stages.1.needs.0", "No stage is called 'c'"),
        ([stage("a"), stage("b", "a", "a")], "stages.1.needs.1", "listed twice"),
        ([stage("a"), stage("b", dataset={"stage": "a"})], "stages.1.dataset", "add 'a' to `needs`"),
    ],
)
def test_a_need_that_cannot_be_met_is_refused_with_its_field(
    client: TestClient, rows: Dataset, stages: list[dict[str, Any]], field: str, words: str
) -> None:
    error = post(client, *stages)["error"]
    (found,) = error["fields"]
    assert found["field"] == field and words in found["message"]


def test_an_output_may_be_of_a_stage_that_is_needed_through_others(client: TestClient, rows: Dataset) -> None:
    job = post(client, stage("a"), stage("b", "a"), stage("c", "b", dataset={"stage": "a"}))
    assert [run["needs"] for run in job["runs"]] == [[], ["a"], ["b"]]
    plan = client.post("/api/v1/jobs/dry-run", json=job["spec"]).json()
    assert [planned["needs"] for planned in plan["stages"]] == [[], ["a"], ["b"]]
