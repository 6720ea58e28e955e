"""A run that needs a program which not every worker has waits for a worker that announces it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.runs import lifecycle
from app.runs.claimable import FreeResources
from app.settings import Settings
from app.storage.database import transaction
from app.tables import Run, RunStatus, Worker
from trainers.configs import Queue, StageKind
from workers.hosts.worker import register_worker


def claim(worker: Worker, *capabilities: str) -> Run | None:
    free = FreeResources(0, 1 << 40, capabilities=frozenset(capabilities))
    with transaction() as session:
        return lifecycle.claim(session, worker.id, [Queue.cpu], list(StageKind), 30, free)


def test_a_worker_without_the_program_leaves_the_run_to_another(
    make_job: Callable[..., list[Run]], make_worker: Callable[..., Worker]
) -> None:
    (run,) = make_job(RunStatus.queued, stage=StageKind.export, capability="gguf")
    worker = make_worker()
    assert claim(worker) is None
    claimed = claim(worker, "gguf")
    assert claimed is not None and claimed.id == run.id


def export(*formats: str, **more: Any) -> dict[str, Any]:
    stage = {"stage": "export", "model": "org/model", "formats": list(formats), **more}
    return {"name": "export", "queue": "cpu", "stages": [stage]}


def test_the_dry_run_names_the_workers_without_the_program_and_how_to_add_it(
    client: TestClient, make_worker: Callable[..., Worker]
) -> None:
    make_worker(name="first")
    url = "/api/v1/jobs/dry-run"
    (plain,) = client.post(url, json=export("safetensors", "mlx")).json()["stages"]
    assert (plain["waiting_for"], plain["workers"]) == (None, ["first"])
    (stage,) = client.post(url, json=export("gguf_q4_k_m")).json()["stages"]
    assert stage["workers"] == []
    assert stage["waiting_for"].startswith("No live worker of queue cpu has the capability gguf: first lack")
    assert "`make gguf`" in stage["waiting_for"] and "TUNESMITH_GGUF_ENVIRONMENT" in stage["waiting_for"]
    job = client.post("/api/v1/jobs", json=export("gguf_q4_k_m")).json()
    assert job["runs"][0]["waiting_for"] == stage["waiting_for"]
    make_worker(name="second", capabilities=["gguf"])
    (stage,) = client.post(url, json=export("gguf_q4_k_m")).json()["stages"]
    assert (stage["waiting_for"], stage["workers"]) == (None, ["second"])


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_job_cannot_name_the_program(client: TestClient) -> None:
    refused = client.post("/api/v1/jobs", json=export("gguf_f16", gguf_environment="/tmp/evil"))
    assert refused.status_code == 422
    assert refused.json()["error"]["fields"][0]["field"] == "stages.0.gguf_environment"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_worker_announces_a_complete_environment_only(settings: Settings, tmp_path: Path) -> None:
    settings.gguf_environment = str(tmp_path / "gguf")
    for part, expected in (("bin/python", []), ("llama.cpp/convert_hf_to_gguf.py", ["gguf"])):
        (tmp_path / "gguf" / part).parent.mkdir(parents=True)
        (tmp_path / "gguf" / part).touch()
        announced = register_worker(settings, [Queue.cpu], "here").capabilities
        assert [name for name in announced if name == "gguf"] == expected
