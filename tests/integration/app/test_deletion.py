"""Deletion of every noun: refused while something uses it, readable afterwards where others refer to it."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.event import listen
from sqlmodel import Session, SQLModel, col, select
from starlette.testclient import TestClient

from app.datasets import service as datasets
from app.http.errors import InUse, UnprocessableContent
from app.jobs import service as jobs
from app.jobs.schemas import JobCreate
from app.settings import Settings
from app.storage.database import get_engine, read_session, transaction
from app.storage.opening import get_store
from app.tables import (
    Checkpoint,
    Dataset,
    Deployment,
    DeploymentStatus,
    Event,
    JobLabel,
    Model,
    ModelKind,
    Run,
    RunStatus,
    Worker,
)
from trainers.configs import EngineKind, Queue

Make = Callable[..., Any]
ROW = '{"messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]}\n'


@pytest.fixture
def make_model(settings: Settings) -> Make:
    def make(name: str = "sft", **values: Any) -> Model:
        defaults: dict[str, Any] = {
            "kind": ModelKind.adapter,
            "base": "org/base",
            "artifact": "models/m",
            "sha256": "",
            "size_bytes": 1,
        }
        model = Model(name=name, **(defaults | values))
        with transaction() as session:
            session.add(model)
        return model

    return make


@pytest.fixture
def make_deployment(settings: Settings) -> Make:
    def make(**values: Any) -> Deployment:
        defaults: dict[str, Any] = {
            "name": "chat",
            "base": "org/base",
            "engine": EngineKind.hf,
            "queue": Queue.cpu,
        }
        deployment = Deployment(**(defaults | values))
        with transaction() as session:
            session.add(deployment)
        return deployment

    return make


def upload(tmp_path: Path, rows: str = ROW, name: str = "rows") -> Dataset:
    path = tmp_path / "rows.jsonl"
    path.write_text(rows)
    return datasets.create_dataset(path, name)[0]


def submit(client: TestClient, dataset: str) -> dict[str, Any]:
    stage = {"stage": "sft", "base": "org/base", "dataset": dataset, "max_steps": 1}
    response = client.post("/api/v1/jobs", json={"name": "j", "labels": {"a": "b"}, "stages": [stage]})
    assert response.status_code == 201, response.text
    return dict(response.json())


def test_a_dataset_is_deleted_only_when_no_unfinished_job_uses_it(client: TestClient, tmp_path: Path) -> None:
    dataset = upload(tmp_path)
    job = submit(client, "rows")
    refused = client.delete(f"/api/v1/datasets/{dataset.id}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "in_use")
    assert refused.json()["error"]["used_by"] == [job["id"]]
    assert client.get(f"/api/v1/datasets/{dataset.id}").json()["jobs"] == [job["id"]]
    client.post(f"/api/v1/jobs/{job['id']}/cancel")
    assert client.delete(f"/api/v1/datasets/{dataset.id}").status_code == 204
    again = client.delete(f"/api/v1/datasets/{dataset.id}")
    assert again.status_code == 404 and "was deleted at" in again.json()["error"]["message"]


def test_a_finished_job_stays_readable_and_reports_its_deleted_dataset(
    client: TestClient, tmp_path: Path
) -> None:
    dataset = upload(tmp_path)
    job = submit(client, "rows")
    client.post(f"/api/v1/jobs/{job['id']}/cancel")
    client.delete(f"/api/v1/datasets/{dataset.id}")
    assert client.get(f"/api/v1/jobs/{job['id']}").json()["deleted_inputs"] == [dataset.id]
    retried = client.post(f"/api/v1/jobs/{job['id']}/retry")
    assert (retried.status_code, retried.json()["error"]["code"]) == (409, "input_deleted")
    upload(tmp_path, name="again")
    assert client.get(f"/api/v1/jobs/{job['id']}").json()["deleted_inputs"] == []
    assert client.post(f"/api/v1/jobs/{job['id']}/retry").status_code == 200


def test_uploading_a_deleted_file_restores_its_dataset(client: TestClient, tmp_path: Path) -> None:
    dataset = upload(tmp_path)
    client.delete(f"/api/v1/datasets/{dataset.id}")
    assert client.get("/api/v1/datasets").json()["items"] == []
    restored = upload(tmp_path, name="again")
    assert (restored.id, restored.name, restored.deleted_at) == (dataset.id, "again", None)
    assert restored.artifact != dataset.artifact
    assert client.get(f"/api/v1/datasets/{dataset.id}/content").text == ROW


def test_a_name_means_the_newest_dataset_that_remains(client: TestClient, tmp_path: Path) -> None:
    older, newer = upload(tmp_path), upload(tmp_path, ROW * 2)
    client.delete(f"/api/v1/datasets/{newer.id}")
    assert submit(client, "rows")["runs"][0]["config"]["dataset"] == older.id


def test_a_dataset_lists_its_models_and_they_remember_it(
    client: TestClient, tmp_path: Path, make_model: Make
) -> None:
    dataset = upload(tmp_path)
    model = make_model(dataset_id=dataset.id)
    make_model()
    assert client.get(f"/api/v1/datasets/{dataset.id}").json()["models"] == [model.id]
    listed = client.get("/api/v1/models", params={"dataset_id": dataset.id}).json()["items"]
    assert [item["id"] for item in listed] == [model.id]
    assert client.delete(f"/api/v1/datasets/{dataset.id}").status_code == 204
    lineage = client.get(f"/api/v1/models/{model.id}").json()["dataset"]
    assert (lineage["sha256"], lineage["deleted_at"] is None) == (dataset.sha256, False)


def test_a_model_is_deleted_only_when_nothing_uses_it(
    client: TestClient, make_model: Make, make_deployment: Make, make_job: Make
) -> None:
    model = make_model()
    child = make_model(parent_id=model.id)
    deployment = make_deployment(model_id=model.id)
    (run, _) = make_job(RunStatus.succeeded, RunStatus.queued, model_id=model.id)
    users = client.get(f"/api/v1/models/{model.id}").json()["used_by"]
    assert users == {"jobs": [run.job_id], "deployments": [deployment.id], "models": [child.id]}
    refused = client.delete(f"/api/v1/models/{model.id}").json()["error"]
    assert refused["used_by"] == [run.job_id, deployment.id, child.id]
    client.post(f"/api/v1/jobs/{run.job_id}/cancel")
    client.post(f"/api/v1/deployments/{deployment.id}/stop")
    assert client.delete(f"/api/v1/models/{child.id}").status_code == 204
    assert client.delete(f"/api/v1/models/{model.id}").status_code == 204
    assert client.get("/api/v1/models").json()["items"] == []


def test_a_deleted_model_can_neither_be_trained_nor_deployed(client: TestClient, make_model: Make) -> None:
    model = make_model()
    client.delete(f"/api/v1/models/{model.id}")
    response = client.post("/api/v1/deployments", json={"name": "chat", "model": model.id})
    assert (response.status_code, "has no model" in response.text) == (422, True)


def test_a_job_is_deleted_with_everything_that_belongs_to_it(
    client: TestClient, tmp_path: Path, make_model: Make
) -> None:
    upload(tmp_path)
    job = submit(client, "rows")
    run_id = job["runs"][0]["id"]
    with transaction() as session:
        session.add(Checkpoint(run_id=run_id, attempt=1, step=1, artifact="c", sha256="", size_bytes=1))
    model = make_model(run_id=run_id)
    refused = client.delete(f"/api/v1/jobs/{job['id']}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "job_status_conflict")
    client.post(f"/api/v1/jobs/{job['id']}/cancel")
    assert client.delete(f"/api/v1/jobs/{job['id']}").status_code == 204
    assert client.delete(f"/api/v1/jobs/{job['id']}").status_code == 404
    with read_session() as session:
        rows = [session.scalars(select(table)).all() for table in (Run, Event, Checkpoint, JobLabel)]
    assert rows == [[], [], [], []]
    assert client.get(f"/api/v1/models/{model.id}").json()["run"] is None


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_deletion_reaches_every_table_that_refers_to_jobs_or_runs(
    client: TestClient, tmp_path: Path
) -> None:
    upload(tmp_path)
    job = submit(client, "rows")
    client.post(f"/api/v1/jobs/{job['id']}/cancel")
    statements: list[str] = []
    listen(get_engine(), "before_cursor_execute", lambda *given: statements.append(given[2]))
    assert client.delete(f"/api/v1/jobs/{job['id']}").status_code == 204
    referring = {
        key.parent.table.name
        for table in SQLModel.metadata.tables.values()
        for key in table.foreign_keys
        if key.column.table.name in ("job", "run")
    }
    reached = {statement.split()[2] for statement in statements if statement.startswith("DELETE FROM")}
    assert referring <= reached


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_job_that_is_deleted_while_it_is_read_is_not_found(
    settings: Settings, client: TestClient, make_job: Make
) -> None:
    (run,) = make_job(RunStatus.succeeded)
    with read_session() as session:
        job = jobs.get_job(session, run.job_id)
        assert client.delete(f"/api/v1/jobs/{run.job_id}").status_code == 204
        with pytest.raises(jobs.JobNotFound):
            jobs.view_job(session, settings, job)


def test_a_deployment_is_deleted_after_it_has_ended(client: TestClient, make_deployment: Make) -> None:
    deployment = make_deployment(status=DeploymentStatus.asleep)
    client.put("/api/v1/aliases/prod", json={"targets": [{"deployment": "chat"}]})
    refused = client.delete(f"/api/v1/deployments/{deployment.id}").json()["error"]
    assert (refused["code"], refused["used_by"]) == ("deployment_live", ["prod"])
    client.post(f"/api/v1/deployments/{deployment.id}/stop", params={"force": True})
    assert client.delete(f"/api/v1/deployments/{deployment.id}").status_code == 204
    assert client.delete(f"/api/v1/deployments/{deployment.id}").status_code == 404


def test_a_worker_is_deleted_when_it_is_absent_and_holds_nothing(
    client: TestClient, make_worker: Make, make_job: Make
) -> None:
    worker = make_worker()
    (run,) = make_job(RunStatus.running, worker_id=worker.id)
    refused = client.delete(f"/api/v1/workers/{worker.id}").json()["error"]
    assert refused["code"] == "worker_alive"
    set_values(Worker, worker.id, last_seen_at=None)
    assert client.delete(f"/api/v1/workers/{worker.id}").json()["error"]["used_by"] == [run.id]
    set_values(Run, run.id, status=RunStatus.queued, worker_id=None)
    assert client.delete(f"/api/v1/workers/{worker.id}").status_code == 204
    assert client.get("/api/v1/workers").json()["items"] == []


def test_a_key_is_purged_with_its_record(client: TestClient) -> None:
    created = client.post(
        "/api/v1/keys", json={"name": "a", "scopes": ["admin"], "lock_service": True}
    ).json()
    client.headers["Authorization"] = f"Bearer {created['key']}"
    other = client.post("/api/v1/keys", json={"name": "b", "scopes": ["read"]}).json()
    assert client.delete(f"/api/v1/keys/{other['id']}").json()["revoked_at"] is not None
    assert client.delete(f"/api/v1/keys/{other['id']}?purge=true").status_code == 200
    assert [key["name"] for key in client.get("/api/v1/keys").json()["items"]] == ["a"]


def test_a_deletion_and_a_job_that_race_never_leave_a_job_without_its_dataset(
    settings: Settings, tmp_path: Path
) -> None:
    stage = {"stage": "sft", "base": "org/base", "dataset": "rows", "max_steps": 1}
    spec = JobCreate.model_validate({"name": "j", "stages": [stage]})
    for round_ in range(10):
        dataset = upload(tmp_path, ROW * (round_ + 1))
        succeeded = run_both(
            lambda session: jobs.create_job(session, settings, spec, "", None),
            partial(datasets.delete_dataset, dataset_id=dataset.id),
        )
        assert succeeded.count(True) == 1
        with transaction() as session:
            for run in session.exec(select(Run)).all():
                run.status = RunStatus.cancelled
            for row in session.exec(select(Dataset).where(col(Dataset.deleted_at).is_(None))).all():
                row.name = "past"


def run_both(*functions: Callable[[Session], object]) -> list[bool]:
    """Run both at the same time, each in its transaction; return which succeeded."""
    ready = threading.Barrier(len(functions))

    def call(function: Callable[[Session], object]) -> bool:
        ready.wait()
        try:
            with transaction() as session:
                function(session)
        except (InUse, UnprocessableContent):
            return False
        return True

    with ThreadPoolExecutor(len(functions)) as pool:
        return list(pool.map(call, functions))


def set_values(table: type[Any], row_id: str, **values: Any) -> None:
    with transaction() as session:
        row = session.get_one(table, row_id)
        for name, value in values.items():
            setattr(row, name, value)


def test_a_dataset_that_lost_a_race_of_uploads_leaves_no_file(settings: Settings, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: upload_copy(tmp_path, number), range(4)))
    assert len(list(Path(get_store().root, "datasets").iterdir())) == 1


def upload_copy(folder: Path, number: int) -> None:
    path = folder / f"{number}.jsonl"
    path.write_text(ROW)
    datasets.create_dataset(path, "rows")
