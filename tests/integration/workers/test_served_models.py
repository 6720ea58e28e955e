"""A program gets address and key of the endpoints that its config names in its environment."""

from collections.abc import Iterator
from typing import Any, Literal

import pytest
from pydantic import SecretStr
from sqlmodel import select

from app.settings import EvaluationEndpoint
from app.storage.database import transaction
from app.tables import Deployment
from app.tables.deployment import DeploymentStatus
from tests.integration.workers.conftest import worker
from trainers.configs import EngineKind, Queue
from trainers.configs.base import DeployedModel, EndpointModel, ServedModel, StageConfig
from trainers.configs.metrics import ExactMatch
from trainers.configs.stages.evaluate import EvaluateConfig
from trainers.graders import sandbox
from trainers.runtime import redaction
from workers.hosts.worker import WorkerContext
from workers.inputs.errors import LaunchStopped
from workers.inputs.served_models import ServedModelMissing, served_model_environment, wake_served_models

__all__ = ["worker"]

KEY = "canary-judge-0123456789"


class JudgedStage(StageConfig):
    stage: Literal["judged"] = "judged"
    judge: ServedModel


@pytest.fixture
def judge(worker: WorkerContext) -> Iterator[JudgedStage]:
    worker.settings.evaluation_endpoints = {
        name: EvaluationEndpoint(url="https://judge.example/v1", api_key=SecretStr(KEY))
        for name in ("judge", "other")
    }
    yield JudgedStage(judge=EndpointModel(endpoint="judge", model="gpt"))
    redaction._added.clear()
    redaction._secret_values.cache_clear()


def test_a_program_gets_the_named_endpoint_only(worker: WorkerContext, judge: JudgedStage) -> None:
    variables = served_model_environment(judge, worker.settings)
    assert variables["TUNESMITH_ENDPOINT_JUDGE_URL"] == "https://judge.example/v1"
    assert variables["TUNESMITH_ENDPOINT_JUDGE_API_KEY"] == KEY
    assert not any("OTHER" in name for name in variables)
    assert KEY not in judge.model_dump_json() + repr(worker.settings)


def test_a_program_runs_python_graders_only_where_the_operator_allows_them(worker: WorkerContext) -> None:
    source = "def grade(sample, item): return 1"
    metric = {"metric": "grader", "grader": {"type": "python", "source": source}}
    stage = EvaluateConfig.model_validate(
        {"stage": "evaluate", "model": {"field": "a"}, "dataset": "d", "metrics": [metric]}
    )
    assert served_model_environment(stage, worker.settings) == {}
    worker.settings.python_graders = True
    variables = served_model_environment(stage, worker.settings)
    assert variables == {sandbox.ALLOWED_VARIABLE: "true", sandbox.SECONDS_VARIABLE: "60"}
    other = stage.model_copy(update={"metrics": [ExactMatch()]})
    assert served_model_environment(other, worker.settings) == {}


def test_what_a_program_writes_loses_the_key(worker: WorkerContext, judge: JudgedStage) -> None:
    served_model_environment(judge, worker.settings)
    assert redaction.redact(f"401 for {KEY}") == "401 for ***"


def test_an_endpoint_that_the_worker_lacks_is_an_error(worker: WorkerContext) -> None:
    stage = JudgedStage(judge=EndpointModel(endpoint="absent", model="gpt"))
    with pytest.raises(ServedModelMissing, match="no endpoint 'absent'"):
        served_model_environment(stage, worker.settings)


def test_a_deployment_is_reached_at_its_engine_once_it_is_ready(worker: WorkerContext) -> None:
    stage = JudgedStage(judge=DeployedModel(deployment="chat"))
    with pytest.raises(ServedModelMissing, match="'chat' is not ready"):
        served_model_environment(stage, worker.settings)
    with transaction() as session:
        session.add(
            Deployment(
                name="chat",
                base="/m",
                engine=EngineKind.hf,
                queue=Queue.cpu,
                status=DeploymentStatus.ready,
                address="http://127.0.0.1:9",
                upstream_model="base",
            )
        )
    variables = served_model_environment(stage, worker.settings)
    assert variables == {"TUNESMITH_DEPLOYMENT_ADDRESSES": '{"chat": ["http://127.0.0.1:9/v1", "base"]}'}


def test_a_sleeping_deployment_is_woken_and_waited_for(worker: WorkerContext) -> None:
    stage = JudgedStage(judge=DeployedModel(deployment="chat"))
    values: dict[str, Any] = {"base": "/m", "engine": EngineKind.hf, "queue": Queue.cpu, "engine_key": "key"}
    with transaction() as session:
        session.add(Deployment(name="chat", status=DeploymentStatus.asleep, **values))
    statuses = []

    def become_ready() -> bool:
        with transaction() as session:
            deployment = session.exec(select(Deployment)).one()
            statuses.append(deployment.status)
            deployment.status = DeploymentStatus.ready
        return False

    wake_served_models(stage, become_ready)
    assert statuses == [DeploymentStatus.queued]
    with transaction() as session:
        session.exec(select(Deployment)).one().status = DeploymentStatus.starting
    with pytest.raises(LaunchStopped):
        wake_served_models(stage, lambda: True)
