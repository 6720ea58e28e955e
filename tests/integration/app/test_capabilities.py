"""A run that needs a program which not every worker has waits for a worker that announces it."""

import json
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
from app.workers.service import explain_missing_worker
from trainers.configs import Queue, StageKind
from trainers.configs.engines import join_capabilities
from trainers.configs.graders import PYTHON_GRADER
from trainers.configs.metrics.translation import Comet
from trainers.configs.stages.evaluate import EvaluateConfig
from trainers.graders.sandbox import find_sandbox_fault
from workers.hosts.worker import register_worker
from workers.inputs.errors import InputModelNotFound
from workers.inputs.metric_programs import place_metric_programs


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
    settings.comet_environment = str(tmp_path / "comet")
    for environment, part, expected in (
        ("gguf", "bin/python", []),
        ("gguf", "llama.cpp/convert_hf_to_gguf.py", ["gguf"]),
        ("comet", "bin/python", ["gguf"]),
        ("comet", "installed", ["gguf", "comet"]),
    ):
        (tmp_path / environment / part).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / environment / part).touch()
        announced = register_worker(settings, [Queue.cpu], "here").capabilities
        assert [name for name in announced if name in ("gguf", "comet")] == expected


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_worker_announces_a_sandbox_that_it_has_tried(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert PYTHON_GRADER not in register_worker(settings, [Queue.cpu], "here").capabilities
    settings.python_graders = True
    has_sandbox = find_sandbox_fault() is None
    assert (PYTHON_GRADER in register_worker(settings, [Queue.cpu], "here").capabilities) is has_sandbox
    find_sandbox_fault.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert PYTHON_GRADER not in register_worker(settings, [Queue.cpu], "here").capabilities
    find_sandbox_fault.cache_clear()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_grader_by_meteor_waits_for_a_worker_with_its_packages(
    client: TestClient,
    settings: Settings,
    make_worker: Callable[..., Worker],
    make_dataset: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_dataset("rows")
    make_worker(name="plain")
    grader = {
        "type": "text_similarity",
        "name": "near",
        "input": "{{ sample.output_text }}",
        "reference": "a",
    }
    stage = {"stage": "evaluate", "model": "org/model", "dataset": "rows"}

    def plan(metric: str) -> Any:
        scored = [{"metric": "grader", "grader": grader | {"evaluation_metric": metric}}]
        body = {"name": "grade", "queue": "cpu", "stages": [stage | {"metrics": scored}]}
        return client.post("/api/v1/jobs/dry-run", json=body).json()["stages"][0]

    assert "text_similarity" not in str(plan("fuzzy_match")["waiting_for"])
    assert "has the capability text_similarity" in plan("meteor")["waiting_for"]
    assert "extra `evaluation`" in plan("meteor")["waiting_for"]
    assert "text_similarity" in register_worker(settings, [Queue.cpu], "here").capabilities
    monkeypatch.setattr("workers.hosts.worker.SIMILARITY_PACKAGES", ("no-such-package",))
    assert "text_similarity" not in register_worker(settings, [Queue.cpu], "other").capabilities


def evaluate(folder: Path, **more: Any) -> dict[str, Any]:
    comet = {"metric": "comet", "checkpoint": str(folder), **more}
    stage = {"stage": "evaluate", "model": "org/model", "dataset": "rows", "metrics": ["chrf", comet]}
    return {"name": "evaluate", "queue": "cpu", "stages": [stage]}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_an_evaluation_by_comet_waits_for_a_worker_that_has_it(
    client: TestClient, make_worker: Callable[..., Worker], tmp_path: Path
) -> None:
    rows = {"prompt": "Korean to English:\n고양이.", "completion": "A cat."}
    files = {"file": ("rows.jsonl", json.dumps(rows) + "\n")}
    assert client.post("/api/v1/datasets", data={"name": "rows"}, files=files).status_code == 201
    make_worker(name="first")
    body, url = evaluate(tmp_path / "models" / "comet"), "/api/v1/jobs/dry-run"
    (stage,) = client.post(url, json=body).json()["stages"]
    assert stage["waiting_for"].startswith("No live worker of queue cpu has the capability comet: first lack")
    assert "`make comet`" in stage["waiting_for"] and "TUNESMITH_COMET_ENVIRONMENT" in stage["waiting_for"]
    make_worker(name="second", capabilities=["comet"])
    (stage,) = client.post(url, json=body).json()["stages"]
    assert (stage["waiting_for"], stage["workers"]) == (None, ["second"])


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_job_names_no_environment_and_only_a_model_under_an_allowed_root(
    client: TestClient, tmp_path: Path
) -> None:
    outside = ["/etc", "../comet", "Unbabel/wmt22-comet-da", str(tmp_path / "models" / ".." / "secret")]
    for folder, more, field in [
        (tmp_path / "models" / "comet", {"environment": "/tmp/evil"}, "environment"),
        *((Path(path), {}, "checkpoint") for path in outside),
    ]:
        refused = client.post("/api/v1/jobs", json=evaluate(folder, **more))
        assert refused.status_code == 422
        fields = [error["field"] for error in refused.json()["error"]["fields"]]
        assert f"stages.0.metrics.1.{field}" in fields


def test_a_run_that_needs_an_engine_and_a_metric_goes_to_a_worker_with_both(
    make_job: Callable[..., list[Run]], make_worker: Callable[..., Worker]
) -> None:
    needed = join_capabilities(["vllm", None, "comet"])
    assert needed == "comet+vllm"
    (run,) = make_job(RunStatus.queued, stage=StageKind.evaluate, capability=needed)
    worker = make_worker()
    assert claim(worker, "comet") is claim(worker, "vllm") is None
    missing = explain_missing_worker([worker], Queue.cpu, StageKind.evaluate, capability=needed)
    assert missing is not None and "the capabilities comet and vllm" in missing
    claimed = claim(worker, "gguf", "vllm", "comet")
    assert claimed is not None and claimed.id == run.id


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_worker_gives_a_metric_its_own_environment_and_a_model_under_its_roots(
    settings: Settings, tmp_path: Path
) -> None:
    settings.comet_environment = str(tmp_path / "comet")
    folder = settings.model_roots[0] / "comet"
    (folder / "encoder").mkdir(parents=True)
    (folder / "hparams.yaml").touch()
    stage = EvaluateConfig.model_validate(evaluate(folder)["stages"][0])
    (_, metric) = place_metric_programs(stage, settings).metrics
    assert isinstance(metric, Comet)
    assert (metric.environment, metric.checkpoint) == (settings.comet_environment, str(folder.resolve()))
    (folder / "encoder" / "config.json").symlink_to("/etc/passwd")
    with pytest.raises(InputModelNotFound, match="out of the roots"):
        place_metric_programs(stage, settings)
    other = EvaluateConfig.model_validate(evaluate(tmp_path)["stages"][0])
    with pytest.raises(InputModelNotFound, match="not under a root"):
        place_metric_programs(other, settings)
