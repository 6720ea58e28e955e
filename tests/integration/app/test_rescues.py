"""Rescues through the API, with a worker that fetches from a stand-in of OpenAI; nothing is trained."""

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from app.keys import service as keys
from app.keys.schemas import KeyCreate
from app.rescues.command import CommandFailed, run_list, run_rescue
from app.rescues.plan import choose_max_cost, set_prices
from app.rescues.retirement import SHUTDOWN_DATES
from app.rescues.schemas import CostEstimateView
from app.settings import Settings, get_settings
from app.storage.database import transaction
from app.tables import Scope
from tests.integration.workers.conftest import execute_next, worker
from tests.openai_stand_in import BASE, KEY, MODEL, OpenaiStandIn
from trainers.configs import StageKind
from trainers.runtime.redaction import _secret_values
from workers.hosts.worker import WorkerContext

__all__ = ["worker"]

FAST = {"requests_per_minute": 60_000}
ROWS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": f"{n} + 1"}, {"role": "assistant", "content": str(n + 1)}]}
    for n in range(20)
]


# What these tests run besides the API is the same on both databases.
sqlite_only = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


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
    created = post(client, "", {"fine_tuned_model": MODEL, **FAST})
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
    files = []
    for path in folder.rglob("*"):
        # The service runs: a file may be renamed or deleted before it is read.
        with suppress(FileNotFoundError, IsADirectoryError):
            files.append(path.read_bytes().decode(errors="replace"))
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
    for key in ("", " \n", "schlüssel-0123456789", "sk-two\nlines"):
        settings.openai_api_key = SecretStr(key)
        response = client.get("/api/v1/rescues/models")
        assert (response.status_code, response.json()["error"]["code"]) == (422, "openai_key_missing")
        assert key.strip() == "" or key not in response.text
    # Files with secrets end with a newline.
    settings.openai_api_key = SecretStr(f"{KEY}\n")
    assert client.get("/api/v1/rescues/models").status_code == 200


def test_a_rescue_fetches_estimates_and_starts_one_job(
    client: TestClient,
    ready: dict[str, Any],
    tmp_path: Path,
    account: OpenaiStandIn,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_list(get_settings())
    assert f"{MODEL}  {BASE}  supervised  file-training0  2027-01-14" in capsys.readouterr().out
    with pytest.raises(
        CommandFailed, match=f"To continue: python -m app rescue --rescue {ready['id']} --yes"
    ):
        run_rescue(get_settings(), {"rescue": ready["id"]}, {}, lambda _: False, Path("report"))
    assert "4 prompts for" in capsys.readouterr().err
    with pytest.raises(CommandFailed, match="--max-cost: Input should be greater"):
        run_rescue(get_settings(), {"rescue": ready["id"]}, {"max_cost": -1.0}, bool, Path("report"))
    prices = {"input_price": 2e4, "output_price": 3e4}
    with pytest.raises(CommandFailed, match="Nothing was asked"):
        run_rescue(get_settings(), {"rescue": ready["id"]}, {**prices}, lambda _: False, Path("report"))
    assert "USD at 20000 and 30000 USD a million tokens (the options)" in capsys.readouterr().err
    with pytest.raises(CommandFailed, match="set both input_price"):
        run_rescue(get_settings(), {"rescue": ready["id"]}, {"input_price": 1.0}, bool, Path("report"))
    assert not account.asked
    assert ready["rows"] == {"training": 16, "held_out": 4, "prompts": 0}
    estimate = ready["estimate"]
    assert (estimate["prompts"], estimate["input_price"], estimate["price_source"]) == (
        4,
        0.3,
        "list prices, 2025",
    )
    assert 0 < estimate["cost"] < 0.001
    path = f"/{ready['id']}/start"
    error = refuse(client, path, {"max_cost": 1e-9})
    assert error["message"].startswith("max_cost: The responses are expected to cost")
    error = refuse(client, path, {"max_cost": 0.5, "metrics": ["exact_match"], "margin": 1.0})
    assert error["message"].endswith("is between 0 and 1, so a margin of 1 accepts any model.")
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
    # Another rescue would pay for the same responses again.
    with pytest.raises(
        CommandFailed, match=f"{ready['id']} of this model is running.*--rescue {ready['id']}"
    ):
        run_rescue(
            get_settings(), {"rescue": None, "fine_tuned_model": MODEL}, {}, lambda _: True, Path("report")
        )
    assert KEY not in read_everything(tmp_path)


@sqlite_only
def test_an_accepted_estimate_of_few_rows_leaves_room_for_one_request(
    client: TestClient, ready: dict[str, Any], worker: WorkerContext
) -> None:
    worker.stages = [StageKind.record]
    prices = {"input_price": 3.75, "output_price": 15.0}
    estimate = set_prices(CostEstimateView.model_validate(ready["estimate"]), 3.75, 15.0, None)
    start = {**prices, "max_completion_tokens": 4096, **FAST}
    post(client, f"/{ready['id']}/start", {"max_cost": choose_max_cost(estimate, 4096), **start})
    assert execute_next(worker)
    recorded = client.get(f"/api/v1/rescues/{ready['id']}").json()["recorded"]
    assert recorded["counts"] == {"recorded": 4}


@sqlite_only
def test_recording_does_not_wait_for_the_hardware_of_the_training(
    client: TestClient, ready: dict[str, Any]
) -> None:
    started = post(client, f"/{ready['id']}/start", {"max_cost": 0.5, "queue": "cuda"})
    runs = client.get(f"/api/v1/jobs/{started['job_id']}").json()["runs"]
    assert {run["name"]: run["queue"] for run in runs} == {
        "sft": "cuda",
        "record": "cpu",
        "evaluate": "cuda",
        "agreement": "cuda",
        "gate": "cpu",
    }


@sqlite_only
def test_a_recording_continues_with_a_higher_cost(
    client: TestClient, ready: dict[str, Any], worker: WorkerContext, account: OpenaiStandIn
) -> None:
    worker.stages = [StageKind.record]
    path = f"/{ready['id']}/start"
    prices = {"input_price": 1000.0, "output_price": 1000.0, "max_completion_tokens": 100, **FAST}
    account.sent.clear()
    # Of the four requests, which cost about 0.01 each, some could cost more than what is left.
    post(client, path, {"max_cost": 0.215, **prices})
    assert execute_next(worker)
    n_recorded = account.sent.total()
    assert 1 <= n_recorded < 4
    post(client, path, {"max_cost": 5, **prices})
    assert execute_next(worker)
    recorded = client.get(f"/api/v1/rescues/{ready['id']}").json()["recorded"]
    assert recorded["counts"] == {"recorded": 4} and set(account.sent.values()) == {1}
    assert recorded["cost"] == pytest.approx(sum(recorded["tokens"].values()) / 1000)


METHODS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "dpo": (
        [
            {
                "input": {"messages": row["messages"][:1]},
                "preferred_output": row["messages"][1:],
                "non_preferred_output": [{"role": "assistant", "content": "No."}],
            }
            for row in ROWS
        ],
        {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.1}}},
    ),
    "reinforcement": (
        [{"messages": row["messages"][:1], "answer": row["messages"][1]["content"]} for row in ROWS],
        {
            "type": "reinforcement",
            "reinforcement": {
                "grader": {
                    "type": "string_check",
                    "name": "exact",
                    "operation": "eq",
                    "input": "{{ sample.output_text }}",
                    "reference": "{{ item.answer }}",
                }
            },
        },
    ),
}


@sqlite_only
@pytest.mark.parametrize("method", METHODS)
def test_each_method_is_trained_again_from_its_own_rows(
    client: TestClient, worker: WorkerContext, account: OpenaiStandIn, method: str
) -> None:
    rows, description = METHODS[method]
    name = f"ft:{BASE}:acme:{method}:1"
    account.add_model(rows, fine_tuned_model=name, method=description)
    worker.settings.trainer_python = sys.executable
    created = post(client, "", {"fine_tuned_model": name, **FAST})
    assert execute_next(worker)
    fetched = client.get(f"/api/v1/rescues/{created['id']}").json()
    assert fetched["status"] == "ready", fetched["error"]
    started = post(client, f"/{created['id']}/start", {"max_cost": 1, **FAST})
    runs = {
        run["name"]: run["config"] for run in client.get(f"/api/v1/jobs/{started['job_id']}").json()["runs"]
    }
    if method == "dpo":
        assert list(runs) == ["dpo", "record", "evaluate", "agreement", "gate"]
        assert runs["evaluate"]["metrics"][0]["metric"] == "exact_match"
    else:
        assert list(runs) == ["grpo", "record", "evaluate", "gate"]
        assert runs["evaluate"]["metrics"][0]["grader"] == runs["grpo"]["rewards"][0]["grader"]
    account.jobs.pop(0)


def test_rescues_need_the_scope_admin(client: TestClient) -> None:
    with transaction() as session:
        _, secret = keys.create_key(session, KeyCreate(name="x", scopes=[Scope.read, Scope.write]))
    headers = {"Authorization": f"Bearer {secret}"}
    for method, path in (("GET", ""), ("GET", "/models"), ("POST", ""), ("POST", "/rescue_x/start")):
        assert client.request(method, f"/api/v1/rescues{path}", headers=headers).status_code == 403


@sqlite_only
def test_the_key_is_used_by_rescues_only(client: TestClient) -> None:
    created = post(client, "", {"fine_tuned_model": MODEL})
    stages = [
        {"stage": "fetch", "fine_tuned_model": MODEL},
        {"stage": "fetch", "fine_tuned_model": MODEL, "rescue": created["id"]},
        {"stage": "record", "fine_tuned_model": MODEL, "dataset": "dataset_x"},
    ]
    for stage in stages:
        response = client.post("/api/v1/jobs", json={"name": "x", "stages": [stage]})
        assert response.status_code == 422 and "POST /api/v1/rescues" in response.text


def test_a_rescue_that_is_not_fetched_cannot_start(client: TestClient) -> None:
    created = post(client, "", {"fine_tuned_model": MODEL})
    error = refuse(client, f"/{created['id']}/start", {"max_cost": 1})
    refused = client.delete(f"/api/v1/rescues/{created['id']}")
    assert (refused.status_code, refused.json()["error"]["used_by"]) == (409, [created["fetch_job_id"]])
    client.post(f"/api/v1/jobs/{created['fetch_job_id']}/cancel")
    assert client.get(f"/api/v1/rescues/{created['id']}").json()["status"] == "cancelled"
    assert client.delete(f"/api/v1/rescues/{created['id']}").status_code == 204
    assert error["code"] == "rescue_not_ready" and "is queued" in error["message"]
    assert client.get("/api/v1/rescues/rescue_x").json()["error"]["code"] == "rescue_not_found"
