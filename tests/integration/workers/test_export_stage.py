"""An exported model has a card from its lineage, and is uploaded with the token of the worker where allowed.

Method: the worker runs the real program and the real client of the hub, which is a local server.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.settings import get_settings
from app.storage.database import transaction
from app.storage.opening import get_store
from app.tables import Dataset, Job, Model, ModelKind, Run, RunStatus
from tests.fake_hub import FakeHub, run_hub
from tests.integration.app.conftest import client
from tests.integration.trainers.conftest import adapted, training_rows, write_rows
from tests.integration.workers.conftest import execute_next, row
from trainers.configs import Queue, StageKind
from workers.hosts.worker import WorkerContext

__all__ = ["adapted", "client", "training_rows", "write_rows"]

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
TOKEN = "hf_secret_token"
DATA_HASH = "d" * 64


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with run_hub() as hub:
        hub.token, hub.card_data = TOKEN, {"license": "apache-2.0"}
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        # The stand-in has the plain protocol for large files only.
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        monkeypatch.delenv("HF_HUB_OFFLINE")
        yield hub


@pytest.fixture
def model_id(worker: WorkerContext, hub: FakeHub, adapted: dict[str, str]) -> str:
    """Register the adapter on a base of the hub, with the run and the evaluation that it has."""
    worker.settings.trainer_python = ""
    base = {path.name: path.read_bytes() for path in Path(adapted["base"]).iterdir() if path.is_file()}
    origin = f"org/base@{hub.add_model('org/base', base)}"
    published = get_store().publish_folder(Path(adapted["adapter"]), "models/model_x")
    with transaction() as session:
        job = Job(name="translate")
        data = Dataset(name="pairs", sha256=DATA_HASH, artifact="datasets/x", size_bytes=1, row_count=158)
        session.add_all([job, data])
        session.flush()
        fields: dict[str, Any] = {"job_id": job.id, "queue": Queue.cpu, "status": RunStatus.succeeded}
        sft = Run(position=0, name="sft", stage=StageKind.sft, config={"learning_rate": 0.005}, **fields)
        session.add(sft)
        session.flush()
        lineage: dict[str, Any] = {"base": origin, "run_id": sft.id, "dataset_id": data.id}
        lineage |= {"artifact": published.key, "sha256": published.sha256, "size_bytes": 1}
        session.add(Model(id="model_x", name="sft", kind=ModelKind.adapter, **lineage))
        session.flush()
        sft.model_id = "model_x"
        score = {"metric": "maths_exact_match", "value": 0.75, "n": 40, "interval_95": [0.6, 0.86]}
        scored = {"role": "model", "model": "sft", "scores": [score | {"signature": "maths_exact_match"}]}
        result = {"stage": "evaluate", "n": 40, "models": [scored]}
        config = {"model": {"stage": "sft"}, "dataset": data.id}
        session.add(
            Run(position=1, name="evaluate", stage=StageKind.evaluate, config=config, result=result, **fields)
        )
    return "model_x"


def test_a_model_is_uploaded_with_its_card_and_without_the_token_in_any_record(
    client: TestClient, worker: WorkerContext, hub: FakeHub, model_id: str
) -> None:
    stage = {"stage": "export", "model": model_id, "push": {"repository": "mine/translator"}}
    body = {"name": "push", "queue": "cpu", "stages": [stage]}
    refused = client.post("/api/v1/jobs", json=body)
    assert refused.status_code == 422
    assert "TUNESMITH_HUB_PUSH_NAMESPACES" in refused.json()["error"]["message"]
    get_settings().hub_push_namespaces = worker.settings.hub_push_namespaces = ["mine"]
    run_id = client.post("/api/v1/jobs", json=body).json()["runs"][0]["id"]
    assert execute_next(worker)
    run = row(run_id)
    assert run.error is None and run.result is not None
    files = hub.models["mine/translator"].commits[run.result["hub"]["commit"]]
    assert hub.private == {"mine/translator": True}
    assert files.keys() >= {"README.md", "config.json", "model.safetensors", "tokenizer.json"}
    stored = get_store().local_path(f"models/{run.model_id}")
    assert stored is not None and files["model.safetensors"] == (stored / "model.safetensors").read_bytes()
    card = files["README.md"].decode()
    assert card.startswith("---\n") and "base_model: org/base" in card and "license: apache-2.0" in card
    assert f"| sft | pairs | 158 | `{DATA_HASH}` |" in card and "learning_rate" in card
    assert "| maths_exact_match | 0.7500 | 40 | 0.6000 – 0.8600 | `maths_exact_match` |" in card
    assert "Licence of the base: apache-2.0." in card
    assert TOKEN not in json.dumps([run.result, run.config])
    assert not [path for path in stored.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    # A token that may not write is a person's error, and is not retried.
    hub.token = "another"
    run_id = client.post("/api/v1/jobs", json=body).json()["runs"][0]["id"]
    assert execute_next(worker)
    failed = row(run_id)
    assert failed.error is not None and failed.status is RunStatus.failed
    assert failed.error["code"] == "hub_push_refused" and "HF_TOKEN" in failed.error["hint"]


def test_a_worker_checks_the_namespace_itself(
    client: TestClient, worker: WorkerContext, hub: FakeHub, model_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.jobs.plan_checks._check_push", lambda *_: [])
    stage = {"stage": "export", "model": "org/base", "push": {"repository": "other/stolen"}}
    job = client.post("/api/v1/jobs", json={"name": "push", "queue": "cpu", "stages": [stage]}).json()
    assert execute_next(worker)
    failed = row(job["runs"][0]["id"])
    assert failed.error is not None and failed.error["code"] == "hub_push_refused"
    assert "other/stolen" not in hub.models


@pytest.mark.slow
@pytest.mark.skipif(
    "TUNESMITH_GGUF_ENVIRONMENT" not in os.environ,
    reason="no environment of llama.cpp: run `make gguf`, which builds it for minutes",
)
def test_a_worker_with_llama_cpp_writes_gguf(
    client: TestClient, worker: WorkerContext, adapted: dict[str, str], tmp_path: Path
) -> None:
    worker.settings.trainer_python = ""
    base = shutil.copytree(adapted["base"], worker.settings.model_roots[0] / "known")
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    splits = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    (base / "tokenizer.json").write_text(json.dumps(tokenizer | {"pre_tokenizer": splits}))
    stage = {"stage": "export", "model": "known", "formats": ["gguf_q8_0"], "pre_tokenizer": "gpt-2"}
    job = client.post("/api/v1/jobs", json={"name": "gguf", "queue": "cpu", "stages": [stage]}).json()
    # The worker has found the environment when it was registered.
    found, worker.capabilities = worker.capabilities, []
    assert "gguf" in found and not execute_next(worker)
    worker.capabilities = found
    assert execute_next(worker)
    run = row(job["runs"][0]["id"])
    assert run.error is None and run.result is not None
    assert run.result["checks"]["formats"]["model-q8_0.gguf"]["mean"] < 0.05
    files = client.get(f"/api/v1/models/{run.model_id}/files").json()["items"]
    assert {"model-q8_0.gguf", "model.safetensors", "README.md"} <= {file["path"] for file in files}
