"""Deletion of fine-tuned models by their names."""

from collections.abc import Callable
from typing import Any

import pytest

from app.deployments import lifecycle
from app.fine_tuning.checkpoints import FineTunedModelNotFound
from app.fine_tuning.models import delete_model
from app.http.errors import InUse
from app.storage.database import read_session, transaction
from app.tables import (
    Deployment,
    DeploymentStatus,
    FineTuningCheckpoint,
    FineTuningJob,
    Model,
    ModelKind,
    Run,
    RunStatus,
    Worker,
)
from trainers.configs import EngineKind, Queue

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
NAME = "ft:base:acme::12345678"


@pytest.fixture
def deployment(make_job: Callable[..., list[Run]]) -> Deployment:
    """Return the sleeping deployment of a checkpoint."""
    (run,) = make_job(RunStatus.succeeded)
    model = Model(name="m", kind=ModelKind.adapter, base="org/base", artifact="a", sha256="s", size_bytes=1)
    values: dict[str, Any] = {
        **dict.fromkeys(("model", "base", "base_name", "organization", "training_file"), "x"),
        **{"seed": 1, "method": {}, "explanation": "", "engine": {}},
    }
    job = FineTuningJob(job_id=run.job_id, fine_tuned_model=NAME, **values)
    step = FineTuningCheckpoint(
        fine_tuning_job_id=job.id, step=1, name=f"{NAME}:ckpt-step-1", model_id=model.id, metrics={}
    )
    deployment = Deployment(
        name=step.name,
        base="org/base",
        model_id=model.id,
        engine=EngineKind.hf,
        queue=Queue.cpu,
        status=DeploymentStatus.asleep,
    )
    with transaction() as session:
        session.add(job)
        session.add(model)
        session.flush()
        session.add_all([step, deployment])
    return deployment


def test_a_fine_tuned_model_is_deleted_with_its_sleeping_deployment(deployment: Deployment) -> None:
    with transaction() as session:
        delete_model(session, deployment.name, "")
    with read_session() as session:
        assert session.get_one(Deployment, deployment.id).status is DeploymentStatus.stopped
        assert session.get_one(Model, deployment.model_id).deleted_at is not None
    with transaction() as session, pytest.raises(FineTunedModelNotFound):
        delete_model(session, deployment.name, "")


def test_a_fine_tuned_model_that_is_deployed_is_not_deleted(
    deployment: Deployment, make_worker: Callable[..., Worker]
) -> None:
    worker = make_worker()
    with transaction() as session:
        lifecycle.wake(session, deployment.id)
        lifecycle.claim(session, deployment.id, worker.id, 60)
    with transaction() as session, pytest.raises(InUse, match="is deployed") as caught:
        delete_model(session, deployment.name, "")
    assert caught.value.used_by == [deployment.id]


@pytest.mark.parametrize("end", ["at once", "by its worker", "with its lease"])
def test_a_fine_tuned_model_that_is_stopped_falls_asleep_so_that_a_request_wakes_it(
    deployment: Deployment, make_worker: Callable[..., Worker], end: str
) -> None:
    worker = make_worker()

    def act(change: Callable[..., Any], *arguments: Any) -> None:
        with transaction() as session:
            change(session, *arguments)

    act(lifecycle.wake, deployment.id)
    if end != "at once":
        act(lifecycle.claim, deployment.id, worker.id, 0 if end == "with its lease" else 60)
    act(lifecycle.stop, deployment.id)
    if end == "by its worker":
        act(lifecycle.end, deployment.id, 1, None)
    act(lifecycle.release_expired)
    with read_session() as session:
        stopped = session.get_one(Deployment, deployment.id)
        assert (stopped.status, stopped.stopped_at) == (DeploymentStatus.asleep, None)
    act(delete_model, deployment.name, "")
    with read_session() as session:
        assert session.get_one(Deployment, deployment.id).status is DeploymentStatus.stopped
