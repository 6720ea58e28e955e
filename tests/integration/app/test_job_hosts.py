"""A job with a host of its own: what is refused, who claims its runs, and what they wait for."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlmodel import select
from starlette.testclient import TestClient

from app.jobs import actions
from app.runs import lifecycle
from app.runs.claimable import FreeResources
from app.storage.database import read_session, transaction
from app.tables import CloudState, Dataset, Host, HostStatus, JobHost, Run, Worker
from tests.integration.app.test_hosts import admin, cloud
from trainers.configs import Queue, StageKind
from trainers.configs.clouds.offers import CloudName

__all__ = ["admin", "cloud"]

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
HOST = {"cloud": "lambda", "type": "gpu_1x_a10", "max_usd": 5.0}
SFT = {"stage": "sft", "base": "org/base", "dataset": "train"}
MERGE = {"stage": "merge", "model": {"stage": "sft"}, "queue": "cpu"}


@pytest.fixture
def post(
    admin: TestClient, cloud: CloudState, make_dataset: Callable[..., Dataset]
) -> Callable[..., dict[str, Any]]:
    """Return a function that posts a job with a host, and returns the response's JSON with the status."""
    make_dataset("train")

    def send(*stages: dict[str, Any], host: dict[str, Any] | None = None, **headers: str) -> dict[str, Any]:
        body = {"name": "job", "host": HOST | (host or {}), "stages": list(stages)}
        response = admin.post("/api/v1/jobs", json=body, headers=headers)
        return {"status_code": response.status_code, **response.json()}

    return send


def claim(worker: Worker, **free: Any) -> Run | None:
    resources = FreeResources(gpus=1, disk_bytes=1 << 40, **free)
    with transaction() as session:
        return lifecycle.claim(session, worker.id, [Queue.cuda, Queue.cpu], list(StageKind), 30, resources)


def add_host(job_id: str, status: HostStatus) -> Host:
    host = Host(
        cloud=CloudName.lambda_cloud, type="gpu_1x_a10", region="us-west-1", usd_per_hour=0.75, max_usd=5.0,
        idle_seconds=900.0, job_id=job_id, status=status,
    )  # fmt: skip
    with transaction() as session:
        session.add(host)
    return host


def test_only_the_ready_host_of_a_job_claims_its_runs(
    post: Callable[..., dict[str, Any]], make_worker: Callable[..., Worker]
) -> None:
    job = post(SFT, MERGE)
    shared = make_worker(queues=[Queue.cuda, Queue.cpu])
    host = add_host(job["id"], HostStatus.joining)
    own = make_worker(queues=[Queue.cuda], host_id=host.id, job_id=job["id"])
    assert [run["queue"] for run in job["runs"]] == ["cuda", "cpu"]
    assert claim(shared) is None
    assert claim(own, host_id=host.id, job_id=job["id"]) is None, "CUDA may not work yet"
    with transaction() as session:
        session.get_one(Host, host.id).status = HostStatus.ready
    claimed = claim(own, host_id=host.id, job_id=job["id"])
    assert claimed is not None and claimed.own_host


@on_sqlite
def test_the_host_of_a_job_takes_no_runs_of_others(
    admin: TestClient, post: Callable[..., dict[str, Any]], make_worker: Callable[..., Worker]
) -> None:
    own = make_worker(queues=[Queue.cuda], job_id="job_of_another")
    admin.post("/api/v1/jobs", json={"name": "other", "stages": [SFT | {"queue": "cuda"}]})
    assert claim(own, job_id="job_of_another") is None
    assert claim(make_worker(queues=[Queue.cuda])) is not None


def test_a_run_waits_for_its_host_in_words(admin: TestClient, post: Callable[..., dict[str, Any]]) -> None:
    job = post(SFT)
    assert job["runs"][0]["waiting_for"].startswith("Waits for a host gpu_1x_a10 of lambda")
    host = add_host(job["id"], HostStatus.booting)
    waiting = admin.get(f"/api/v1/jobs/{job['id']}").json()["runs"][0]["waiting_for"]
    assert waiting == f"Waits for the host {host.id}, which is booting."
    assert admin.get(f"/api/v1/runs/{job['runs'][0]['id']}").json()["waiting_for"] == waiting


@on_sqlite
@pytest.mark.parametrize(
    ("stages", "host", "field", "said"),
    [
        ([SFT], {"type": "p5"}, "host.type", "offers no type p5"),
        ([SFT], {"max_usd": 0.5}, "host.max_usd", "One hour of gpu_1x_a10 costs 0.75"),
        ([SFT | {"devices": 2}], {}, "stages.0.devices", "needs 2 GPUs, and the host gpu_1x_a10 has 1 GPU"),
        ([SFT | {"queue": "cpu"}], {}, "host", "No stage of the job would run on it"),
    ],
)
def test_a_host_that_the_job_cannot_use_is_refused(
    post: Callable[..., dict[str, Any]],
    stages: list[dict[str, Any]],
    host: dict[str, Any],
    field: str,
    said: str,
) -> None:
    response = post(*stages, host=host)
    assert response["status_code"] == 422
    found = response["error"]["fields"][0]
    assert (found["field"], said in found["message"]) == (field, True), found


@on_sqlite
def test_a_cloud_without_keys_and_a_key_without_the_scope_admin_are_refused(
    admin: TestClient, post: Callable[..., dict[str, Any]]
) -> None:
    assert post(SFT, host={"cloud": "aws"})["error"]["code"] == "cloud_unattended"
    key = admin.post("/api/v1/keys", json={"name": "w", "scopes": ["read", "write"]}).json()["key"]
    headers = {"Authorization": f"Bearer {key}"}
    assert post(SFT, **headers)["error"]["code"] == "forbidden"
    job = post(SFT)
    admin.post(f"/api/v1/jobs/{job['id']}/pause")
    assert admin.post(f"/api/v1/jobs/{job['id']}/resume", headers=headers).status_code == 403


@on_sqlite
def test_a_plan_names_the_host_and_a_deleted_job_leaves_no_request_for_one(
    admin: TestClient, post: Callable[..., dict[str, Any]]
) -> None:
    body = {"name": "job", "host": HOST, "stages": [SFT]}
    stage = admin.post("/api/v1/jobs/dry-run", json=body).json()["stages"][0]
    assert (stage["queue"], stage["queue_reason"]) == ("cuda", "The job has a host of its own.")
    assert stage["waiting_for"] == "A host gpu_1x_a10 of lambda, which is launched for the job."
    job = post(SFT)
    with transaction() as session:
        actions.cancel(session, job["id"])
        actions.delete(session, job["id"])
    with read_session() as session:
        assert session.scalars(select(JobHost)).all() == []
