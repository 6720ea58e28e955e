"""Models that were made elsewhere are registered by a job, and then merge like ours.

Method: a worker runs the real programs; the hub is a local server.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.storage.database import read_session
from app.storage.opening import get_store
from app.tables import Model, ModelKind, Run
from tests.fake_hub import FakeHub, run_hub
from tests.integration.app.conftest import client
from tests.integration.trainers.conftest import adapted, training_rows, write_rows
from tests.integration.workers.conftest import execute_next, row
from workers.hosts.worker import WorkerContext

__all__ = ["adapted", "client", "training_rows", "write_rows"]

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with run_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.delenv("HF_HUB_OFFLINE")
        yield hub


@pytest.fixture
def programs(worker: WorkerContext) -> WorkerContext:
    """Return the worker with the real programs."""
    worker.settings.trainer_python = ""
    return worker


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def run_job(client: TestClient, worker: WorkerContext, path: str, body: Any) -> Run:
    response = client.post(f"/api/v1{path}", json=body)
    assert response.status_code in (201, 202), response.text
    assert execute_next(worker)
    return row(response.json()["runs"][0]["id"])


def test_an_adapter_of_the_hub_is_pinned_verified_and_merged(
    client: TestClient, programs: WorkerContext, hub: FakeHub, adapted: dict[str, str]
) -> None:
    base_commit = hub.add_model("org/base", read_files(Path(adapted["base"])))
    adapter = read_files(Path(adapted["adapter"]))
    config = json.loads(adapter["adapter_config.json"]) | {"base_model_name_or_path": "org/base"}
    named = {"adapter_config.json": json.dumps(config).encode(), "optimizer.pt": b"pickle"}
    hub.add_model("org/adapter", adapter | named)
    imported = run_job(client, programs, "/models", {"source": "org/adapter"})
    assert imported.error is None
    with read_session() as session:
        model = session.get_one(Model, imported.model_id)
    assert (model.kind, model.base) == (ModelKind.adapter, f"org/base@{base_commit}")
    assert model.template_sha256
    folder = get_store().local_path(model.artifact)
    assert folder is not None and not (folder / "optimizer.pt").exists()
    stored = json.loads((folder / "adapter_config.json").read_text())
    assert (stored["base_model_name_or_path"], stored["revision"]) == ("org/base", base_commit)
    # A later commit of the base does not change what the adapter is merged into.
    hub.add_model("org/base", {"config.json": b"{}"})
    merge = {"name": "merge", "stages": [{"stage": "merge", "model": model.id}]}
    merged = run_job(client, programs, "/jobs", merge)
    assert merged.error is None
    archive = client.get(f"/api/v1/models/{model.id}/download", params={"form": "merged"})
    assert archive.headers["content-disposition"] == f'attachment; filename="{merged.model_id}.tar"'


def test_an_adapter_of_another_base_is_refused_by_its_import(
    client: TestClient, programs: WorkerContext, adapted: dict[str, str]
) -> None:
    folder = programs.settings.model_roots[0]
    base = folder / "wider"
    base.mkdir()
    for name, content in read_files(Path(adapted["base"])).items():
        if not name.endswith(".safetensors"):
            (base / name).write_bytes(content)
    config = json.loads((base / "config.json").read_text())
    wider = {"hidden_size": config["hidden_size"] * 2, "intermediate_size": 999}
    (base / "config.json").write_text(json.dumps(config | wider))
    weights = next(Path(adapted["base"]).glob("*.safetensors"))
    (base / weights.name).write_bytes(weights.read_bytes())
    adapter = folder / "adapter"
    adapter.mkdir()
    for name, content in read_files(Path(adapted["adapter"])).items():
        (adapter / name).write_bytes(content)
    refused = run_job(client, programs, "/models", {"source": "adapter", "base": "wider"})
    assert refused.error is not None and refused.error["code"] == "adapter_unreadable"
    assert "has the shape" in refused.error["message"] and "`base`" in refused.error["hint"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"source": "model_01k00000000000000000000000"}, "source"),
        ({"source": "/etc"}, "source"),
        ({"source": "org/adapter", "base": "nowhere"}, "base"),
        ({}, "source"),
    ],
)
def test_a_source_that_names_nothing_is_refused_at_once(
    client: TestClient, body: dict[str, str], field: str
) -> None:
    refused = client.post("/api/v1/models", json=body)
    assert refused.status_code == 422
    assert refused.json()["error"]["fields"][0]["field"] == field
