"""Chats to deployments that are not ready: the reason is given at once where it is known."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.deployments import lifecycle
from app.settings import Settings
from app.storage.database import read_session, transaction
from app.tables import Deployment, DeploymentStatus, RunStatus, Worker
from trainers.configs import EngineKind, Queue

CHAT = {"model": "maths", "messages": [{"role": "user", "content": "hi"}]}
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def make_deployment(
    status: DeploymentStatus, ready_at: datetime | None = NOW, queue: Queue = Queue.cpu, name: str = "maths"
) -> Deployment:
    deployment = Deployment(
        name=name, base="org/base", engine=EngineKind.hf, queue=queue, status=status, ready_at=ready_at
    )
    with transaction() as session:
        session.add(deployment)
    return deployment


def chat(client: TestClient, model: str = "maths") -> tuple[int, str]:
    response = client.post("/v1/chat/completions", json=CHAT | {"model": model})
    error: dict[str, Any] = response.json()["error"]
    assert response.status_code != 503 or int(response.headers["retry-after"]) > 0
    return response.status_code, error["message"]


def status_of(deployment: Deployment) -> DeploymentStatus:
    with read_session() as session:
        return session.get_one(Deployment, deployment.id).status


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("status", [DeploymentStatus.asleep, DeploymentStatus.queued])
def test_a_chat_fails_at_once_if_no_worker_is_alive(
    client: TestClient, settings: Settings, status: DeploymentStatus
) -> None:
    settings.wake_timeout_seconds = 200
    deployment = make_deployment(status)
    started_at = time.monotonic()
    code, message = chat(client)
    assert (code, time.monotonic() - started_at < 60) == (503, True)
    assert message == (
        "The deployment 'maths' cannot start: No live worker serves queue cpu. "
        "Start one: python -m workers --queue cpu"
    )
    with read_session() as session:
        # A worker that is started later finds it.
        assert session.get_one(Deployment, deployment.id).status is DeploymentStatus.queued


def test_a_chat_that_waited_in_vain_names_the_status(
    client: TestClient, settings: Settings, make_worker: Callable[..., Worker]
) -> None:
    settings.wake_timeout_seconds = 0.5
    make_worker()
    make_deployment(DeploymentStatus.asleep)
    reason = "No worker of queue cpu has claimed it yet."
    assert chat(client) == (503, f"The deployment is queued, and was not ready within 0.5 s. {reason}")


def test_a_chat_that_waited_for_gpus_names_what_holds_them(
    client: TestClient, settings: Settings, make_worker: Callable[..., Worker], make_job: Callable[..., Any]
) -> None:
    settings.wake_timeout_seconds = 0.5
    make_worker(queues=[Queue.cuda], hardware={"gpus": [{"uuid": "GPU-1", "memory_bytes": 1 << 34}]})
    make_job(RunStatus.running, queue=Queue.cuda, full_name="news-sft")
    make_deployment(DeploymentStatus.asleep, queue=Queue.cuda)
    code, message = chat(client)
    assert code == 503
    assert message.endswith("No worker of queue cuda has claimed it yet; GPUs are in use by run 'news-sft'.")


def test_a_fine_tuned_model_that_did_not_start_sleeps_until_the_next_request(
    client: TestClient, settings: Settings, make_worker: Callable[..., Worker]
) -> None:
    worker = make_worker()
    name = "ft:base:acme::12345678"
    deployment = make_deployment(DeploymentStatus.asleep, ready_at=None, name=name)
    with ThreadPoolExecutor(1) as pool:
        for attempt in (1, 2):
            waiting = pool.submit(chat, client, name)
            until(lambda: status_of(deployment) is DeploymentStatus.queued)
            with transaction() as session:
                assert lifecycle.claim(session, deployment.id, worker.id, 60) is not None
            with transaction() as session:
                assert lifecycle.end(session, deployment.id, attempt, {"code": "x", "message": "No memory."})
            assert waiting.result(60) == (503, f"The deployment {name!r} did not start: No memory.")
            assert status_of(deployment) is DeploymentStatus.asleep


@pytest.mark.parametrize("status", [DeploymentStatus.queued, DeploymentStatus.starting])
def test_a_model_that_starts_for_the_first_time_is_not_unknown(
    client: TestClient, status: DeploymentStatus
) -> None:
    make_deployment(status, ready_at=None)
    assert chat(client) == (503, f"The model 'maths' is not ready yet: its deployment is {status}.")
    assert client.get("/v1/models").json()["data"] == []
    (route,) = client.get("/api/v1/routes").json()["items"]
    assert (route["targets"], route["not_ready"]) == ([], status)


def test_waking_over_http_reports_whether_a_worker_can_start_it(
    client: TestClient, make_worker: Callable[..., Worker]
) -> None:
    deployment = make_deployment(DeploymentStatus.asleep)
    view = client.post(f"/api/v1/deployments/{deployment.id}/wake").json()
    assert (view["status"], view["has_worker"]) == ("queued", False)
    make_worker()
    assert client.get(f"/api/v1/deployments/{deployment.id}").json()["has_worker"] is True
