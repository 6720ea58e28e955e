"""Operations: error responses, logs, health, metrics, the sweeper, and imports."""

import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from sqlmodel import col
from starlette.testclient import TestClient

from app import logs
from app.http import error_responses
from app.main import create_app
from app.scheduling import sweeper
from app.scheduling.queue import get_notifier
from app.settings import Settings
from app.storage.database import read_session, transaction
from app.tables import Deployment, DeploymentStatus, Run, RunStatus, Worker
from trainers.configs import EngineKind, Queue

ML_PACKAGES = ("torch", "transformers", "vllm", "mlx", "trl", "peft", "datasets", "accelerate", "numpy")
REPOSITORY = Path(__file__).parents[3]
# Bodies of bytes, which JSON cannot show.
BYTES = {"multipart/form-data", "application/octet-stream"}
LONG_AGO = datetime.now(UTC) - timedelta(hours=1)
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def test_importing_the_service_loads_no_ml_package() -> None:
    program = f"import sys, app.main; print([name for name in {ML_PACKAGES} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


@on_sqlite
@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("PATCH", "/api/v1/jobs", 405, "method_not_allowed"),
        ("GET", "/api/v1/jobs?limit=0", 422, "invalid"),
        ("GET", "/api/v1/jobs/job_none", 404, "job_not_found"),
    ],
)
def test_every_error_has_the_same_shape(
    client: TestClient, method: str, path: str, status: int, code: str
) -> None:
    response = client.request(method, path)
    error = error_responses.ErrorResponse.model_validate(response.json()).error
    assert (response.status_code, error.code) == (status, code)
    assert error.message.endswith(".")


@on_sqlite
def test_a_bug_returns_500_with_the_request_id_and_logs_its_traceback(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app()
    app.add_api_route("/bug", lambda: 1 / 0)
    client = TestClient(app, base_url="http://127.0.0.1")
    response = client.get("/bug", headers={"x-request-id": "mine"})
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
    assert response.headers["x-request-id"] == "mine" and "mine" in response.json()["error"]["message"]
    assert any(record.exc_info and "/bug failed" in record.message for record in caplog.records)


@on_sqlite
def test_an_unsafe_request_id_is_replaced(client: TestClient) -> None:
    assert client.get("/healthz", headers={"x-request-id": "good-1"}).headers["x-request-id"] == "good-1"
    assert client.get("/healthz", headers={"x-request-id": "a b"}).headers["x-request-id"].startswith("req_")


@on_sqlite
def test_each_request_is_logged_as_one_json_line_with_its_route(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "app.requests"):
        client.get("/api/v1/jobs/job_none", headers={"x-request-id": "mine"})
    (record,) = [record for record in caplog.records if record.name == "app.requests"]
    line = json.loads(logs.JsonFormatter().format(record))
    assert (line["status"], line["route"], line["level"]) == (404, "/api/v1/jobs/{job_id}", "info")


@pytest.mark.parametrize(
    "secret",
    ["ts_" + "a" * 43, "hf_" + "b" * 30, "Bearer abc.def", "redis://:hunter2@host", "u://me:hunter2@host"],
)
def test_secrets_do_not_reach_the_log(secret: str) -> None:
    record = logging.makeLogRecord({"msg": "sent %s", "args": (secret,), "detail": {"value": secret}})
    line = logs.JsonFormatter().format(record)
    assert "***" in line and not any(part in line for part in ("aaaa", "bbbb", "abc.def", "hunter2"))


def test_metrics_count_runs_jobs_and_requests(client: TestClient, make_job: Callable[..., list[Run]]) -> None:
    make_job(RunStatus.succeeded, RunStatus.running)
    make_job(RunStatus.succeeded)
    client.get("/api/v1/jobs/job_none")
    text = client.get("/metrics").text
    assert 'tunesmith_runs{queue="cpu",status="succeeded"} 2.0' in text
    assert 'tunesmith_jobs{status="running"} 1.0' in text
    assert 'tunesmith_jobs{status="succeeded"} 1.0' in text
    assert 'tunesmith_api_requests_total{method="GET",route="/api/v1/jobs/{job_id}",status="404"}' in text


def test_metrics_show_the_use_of_live_workers_hosts(
    client: TestClient, make_worker: Callable[..., Worker]
) -> None:
    gpu = {"name": "H200", "uuid": "GPU-1", "memory_bytes": 100, "used_bytes": 40, "use_percent": 25}
    unknown = {"name": "H200", "uuid": "GPU-2", "memory_bytes": None, "used_bytes": None, "use_percent": None}
    hardware = {"gpus": [gpu, unknown], "data_disk_free_bytes": 7}
    make_worker(queues=["cuda", "cpu"], name="one", host="a", hardware=hardware, problems=["broker: away"])
    gone = make_worker(queues=["cpu"], name="gone")
    with transaction() as session:
        session.execute(update(Worker).where(col(Worker.id) == gone.id).values(last_seen_at=LONG_AGO))
    text = client.get("/metrics").text
    assert 'tunesmith_workers{queue="cpu"} 1.0' in text and 'tunesmith_workers{queue="mlx"} 0.0' in text
    assert 'tunesmith_worker_problems{worker="one"} 1.0' in text and "gone" not in text
    assert 'tunesmith_worker_disk_free_bytes{worker="one"} 7.0' in text
    labels = '{gpu="GPU-1",host="a",name="H200"}'
    assert f"tunesmith_gpu_memory_bytes{labels} 100.0" in text
    assert f"tunesmith_gpu_memory_used_bytes{labels} 40.0" in text
    assert f"tunesmith_gpu_use_ratio{labels} 0.25" in text and "GPU-2" not in text


def test_metrics_show_the_age_of_the_oldest_run_that_can_start(
    client: TestClient, make_job: Callable[..., list[Run]]
) -> None:
    def oldest(queue: str) -> float:
        (line,) = re.findall(
            rf'tunesmith_queue_oldest_seconds{{queue="{queue}"}} (\S+)', client.get("/metrics").text
        )
        return float(line)

    ended, waiting = make_job(RunStatus.succeeded, RunStatus.queued, created_at=LONG_AGO)
    just_now = datetime.now(UTC) - timedelta(minutes=1)
    with transaction() as session:
        session.execute(update(Run).where(col(Run.id) == ended.id).values(finished_at=just_now))
        session.execute(update(Run).where(col(Run.id) == waiting.id).values(unmet_needs=0))
    assert 60 <= oldest("cpu") < 600 and oldest("cuda") == 0
    make_job(RunStatus.queued, created_at=LONG_AGO, queue=Queue.cuda)
    assert oldest("cuda") >= 3600


def notified_queues(settings: Settings) -> list[str]:
    assert get_notifier().wait(60)
    return sorted(path.name.split(".")[-2] for path in (settings.data_dir / "queue/messages").iterdir())


def test_the_sweeper_notifies_a_queue_with_waiting_runs_once(
    settings: Settings, make_job: Callable[..., list[Run]], make_worker: Callable[..., Worker]
) -> None:
    make_worker()
    for _ in range(3):
        make_job(RunStatus.queued, created_at=LONG_AGO)
    make_job(RunStatus.queued, queue=Queue.cuda)
    sweeper.sweep_once(settings)
    sweeper.sweep_once(settings)
    assert notified_queues(settings) == ["cpu"]


def test_the_sweeper_queues_a_run_with_an_expired_lease(
    settings: Settings, make_job: Callable[..., list[Run]]
) -> None:
    (run,) = make_job(RunStatus.running, attempt=1, lease_expires_at=LONG_AGO)
    sweeper.sweep_once(settings)
    with read_session() as session:
        released = session.get_one(Run, run.id)
    assert (released.status, released.failure_count, notified_queues(settings)) == (
        RunStatus.queued,
        1,
        ["cpu"],
    )


def test_workers_are_listed_with_their_runs(
    client: TestClient, make_worker: Callable[..., Any], make_job: Callable[..., list[Run]]
) -> None:
    here = make_worker(name="here")
    gone = make_worker(name="gone", stopped_at=datetime.now(UTC))
    (run,) = make_job(RunStatus.running, worker_id=here.id)
    items = {item["id"]: item for item in client.get("/api/v1/workers").json()["items"]}
    assert (items[here.id]["alive"], items[here.id]["runs"]) == (True, [run.id])
    assert (items[gone.id]["alive"], items[gone.id]["runs"]) == (False, [])
    assert [item["id"] for item in client.get("/api/v1/workers?alive=true").json()["items"]] == [here.id]


def test_the_gateway_lists_ready_deployments_only(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.gateway.routes.REFRESH_SECONDS", 0.0)

    def names() -> list[str]:
        return [model["id"] for model in client.get("/v1/models").json()["data"]]

    assert names() == []
    with transaction() as session:
        for name, status in [("up", DeploymentStatus.ready), ("soon", DeploymentStatus.starting)]:
            session.add(
                Deployment(
                    name=name,
                    base="org/base",
                    engine=EngineKind.hf,
                    queue=Queue.cpu,
                    status=status,
                    address="http://127.0.0.1:1",
                )
            )
    assert names() == ["up"]


@on_sqlite
def test_every_request_body_has_an_example_and_every_route_the_error_response(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    operations = [
        (path, verb, item) for path, verbs in schema["paths"].items() for verb, item in verbs.items()
    ]
    bodies = [(path, item["requestBody"]["content"]) for path, _, item in operations if "requestBody" in item]
    without = [
        path
        for path, content in bodies
        for media in content.values()
        if not BYTES.intersection(content) and not has_example(schema, media)
    ]
    assert without == []
    assert all(item.get("tags") and item.get("summary") for _, _, item in operations)
    assert [
        path for path, _, item in operations if path.startswith("/api/") and "422" in item["responses"]
    ] == []


def has_example(schema: dict[str, Any], media: dict[str, Any]) -> bool:
    reference = media.get("schema", {}).get("$ref", "").rpartition("/")[2]
    model = schema["components"]["schemas"].get(reference, media.get("schema", {}))
    return bool(
        media.get("examples") or media.get("example") or model.get("examples") or model.get("example")
    )
