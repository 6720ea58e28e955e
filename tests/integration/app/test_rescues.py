"""Rescues through the API, with a worker that fetches from a stand-in of OpenAI; nothing is trained."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from app.rescues.retirement import SHUTDOWN_DATES
from app.settings import Settings
from tests.integration.workers.conftest import execute_next, worker
from tests.openai_stand_in import BASE, KEY, MODEL, OpenaiStandIn
from trainers.runtime.redaction import _secret_values
from workers.hosts.worker import WorkerContext

__all__ = ["worker"]

ROWS = [
    {"messages": [{"role": "user", "content": f"{n} + 1"}, {"role": "assistant", "content": str(n + 1)}]}
    for n in range(20)
]


@pytest.fixture(scope="module")
def account() -> Iterator[OpenaiStandIn]:
    account = OpenaiStandIn()
    account.add_model(ROWS, ROWS[:3])
    yield account
    account.die()


@pytest.fixture(autouse=True)
def _use_account(account: OpenaiStandIn, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", account.url)
    monkeypatch.setenv("TUNESMITH_OPENAI_MODELS", json.dumps({BASE: "org/tiny"}))
    _secret_values.cache_clear()
    yield
    _secret_values.cache_clear()


@pytest.fixture
def ready(client: TestClient, worker: WorkerContext) -> dict[str, Any]:
    """Return a rescue whose files are here."""
    worker.settings.trainer_python = sys.executable
    created = post(client, "", {"fine_tuned_model": MODEL, "requests_per_minute": 60_000})
    assert created["status"] == "fetching"
    assert execute_next(worker)
    found: dict[str, Any] = client.get(f"/api/v1/rescues/{created['id']}").json()
    assert found["status"] == "ready", found["error"]
    return found


def post(client: TestClient, path: str, body: Any) -> Any:
    response = client.post(f"/api/v1/rescues{path}", json=body)
    assert response.status_code in (200, 201), response.text
    return response.json()


def refuse(client: TestClient, path: str, body: Any) -> dict[str, Any]:
    response = client.post(f"/api/v1/rescues{path}", json=body)
    assert response.status_code in (409, 422), response.text
    error: dict[str, Any] = response.json()["error"]
    return error


def read_everything(folder: Path) -> str:
    """Return all rows of an embedded database and all files."""
    files = [path.read_bytes().decode(errors="replace") for path in folder.rglob("*") if path.is_file()]
    return "\n".join(files)


def test_models_are_listed_with_the_days_left(client: TestClient, account: OpenaiStandIn) -> None:
    model = client.get("/api/v1/rescues/models").json()["items"][0]
    assert (model["fine_tuned_model"], model["base"], model["method"]) == (MODEL, BASE, "supervised")
    assert model["shutdown_date"] == SHUTDOWN_DATES[BASE].isoformat() == "2027-01-14"
    account.shutdown_dates[MODEL] = "2099-01-01"
    model = client.get("/api/v1/rescues/models").json()["items"][0]
    assert model["shutdown_date"] == "2099-01-01" and model["days_left"] > 20_000
    account.shutdown_dates.clear()


def test_a_process_without_a_key_says_so(client: TestClient, settings: Settings) -> None:
    settings.openai_api_key = SecretStr("")
    response = client.get("/api/v1/rescues/models")
    assert (response.status_code, response.json()["error"]["code"]) == (422, "openai_key_missing")


def test_a_rescue_fetches_estimates_and_starts_one_job(
    client: TestClient, ready: dict[str, Any], tmp_path: Path
) -> None:
    assert ready["rows"] == {"training": 16, "held_out": 4, "prompts": 0}
    estimate = ready["estimate"]
    assert (estimate["prompts"], estimate["input_price"], estimate["price_source"]) == (
        4,
        0.3,
        "list prices, 2026-11",
    )
    assert 0 < estimate["cost"] < 0.001
    path = f"/{ready['id']}/start"
    error = refuse(client, path, {"max_cost": 1e-9})
    assert error["message"].startswith("max_cost: The responses are expected to cost")
    started = post(client, path, {"max_cost": 0.5, "training": {"max_length": 64}})
    job = client.get(f"/api/v1/jobs/{started['job_id']}").json()
    assert [run["name"] for run in job["runs"]] == ["sft", "record", "evaluate", "agreement", "gate"]
    assert [run["needs"] for run in job["runs"]] == [
        [], [], ["sft", "record"], ["sft", "record"], ["evaluate"]
    ]  # fmt: skip
    sft, record, evaluate, _, gate = (run["config"] for run in job["runs"])
    assert (sft["epochs"], sft["max_length"], record["max_cost"]) == (7, 64, 0.5)
    assert (evaluate["metrics"][0]["metric"], gate["margin"], gate["on"]) == ("exact_match", 0.05, "bound")
    own = client.get(f"/v1/fine_tuning/jobs/{started['fine_tuning_job_id']}").json()
    assert own["training_file"] == started["files"]["train"]
    assert own["validation_file"] == started["files"]["validation_file"]
    original = client.get(f"/v1/files/{started['files']['training_file']}/content").content
    assert original == "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    error = refuse(client, path, {"max_cost": 0.5})
    assert error["code"] == "rescue_not_ready"
    assert KEY not in read_everything(tmp_path)


def test_the_key_is_used_by_rescues_only(client: TestClient, ready: dict[str, Any]) -> None:
    stages = [
        {"stage": "fetch", "fine_tuned_model": MODEL},
        {"stage": "fetch", "fine_tuned_model": MODEL, "rescue": ready["id"]},
        {"stage": "record", "fine_tuned_model": MODEL, "dataset": "dataset_x"},
    ]
    for stage in stages:
        response = client.post("/api/v1/jobs", json={"name": "x", "stages": [stage]})
        assert response.status_code == 422 and "POST /api/v1/rescues" in response.text


def test_a_rescue_that_is_not_fetched_cannot_start(client: TestClient) -> None:
    created = post(client, "", {"fine_tuned_model": MODEL})
    error = refuse(client, f"/{created['id']}/start", {"max_cost": 1})
    assert error["code"] == "rescue_not_ready" and "is queued" in error["message"]
    assert client.get("/api/v1/rescues/rescue_x").json()["error"]["code"] == "rescue_not_found"
