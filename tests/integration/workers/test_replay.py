"""A replay computes the same weights; a stage whose inputs are equal can take the output of an earlier one.

Method: a worker in this process runs the real programs.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select
from starlette.testclient import TestClient

from app.storage.database import read_session
from app.storage.opening import get_store
from app.tables import Model, Run
from tests.integration.app.conftest import client
from tests.integration.trainers.conftest import training_rows, write_rows
from tests.integration.workers.conftest import PROGRAM, execute_next
from tests.integration.workers.test_inputs import write_adapter
from trainers.modeling.model_files import ADAPTER_CONFIG
from workers.hosts.worker import WorkerContext

__all__ = ["client", "training_rows", "write_rows"]

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

PREPARE = {"stage": "prepare", "dataset": "arithmetic", "split": {"test": 20}}
SFT = {
    "stage": "sft",
    "base": "starter",
    "dataset": {"stage": "prepare", "part": "train"},
    "tuning": {"method": "lora", "rank": 4},
    "max_steps": 2,
    "batch_size": 8,
    "max_length": 128,
}
EVALUATE = {
    "stage": "evaluate",
    "model": {"stage": "sft"},
    "baseline": "starter",
    "dataset": {"stage": "prepare", "part": "test"},
    "max_rows": 3,
    "max_new_tokens": 4,
}
COMPARE = {
    "stage": "compare",
    "evaluations": [{"stage": "evaluate", "role": r} for r in ("model", "baseline")],
}
GATE = {"stage": "gate", "evaluation": "evaluate", "against": "baseline", "on": "value", "margin": 1}
GATE |= {"needs": ["evaluate"]}


def run_job(client: TestClient, worker: WorkerContext, path: str, body: Any) -> dict[str, Any]:
    """Post a job, execute all its runs, and return its view."""
    response = client.post(f"/api/v1/jobs{path}", json=body)
    assert response.status_code == 201, response.text
    while execute_next(worker):
        pass
    job: dict[str, Any] = client.get(f"/api/v1/jobs/{response.json()['id']}").json()
    assert job["status"] == "succeeded", job
    return job


def upload(client: TestClient, name: str, content: bytes) -> str:
    """Upload a dataset, and return its id."""
    response = client.post("/api/v1/datasets", data={"name": name}, files={"file": ("x.jsonl", content)})
    assert response.status_code == 201, response.text
    return str(response.json()["id"])


def read_weights(model_id: str) -> bytes:
    with read_session() as session:
        folder = get_store().local_path(session.get_one(Model, model_id).artifact)
    assert folder is not None and (folder / ADAPTER_CONFIG).exists()
    return (folder / "adapter_model.safetensors").read_bytes()


def test_a_replay_repeats_a_job_bit_by_bit_or_takes_its_output(
    client: TestClient, worker: WorkerContext, starter: Path, training_rows: str
) -> None:
    worker.settings.trainer_python = ""
    shutil.copytree(starter, worker.settings.model_roots[0] / "starter")
    rows = Path(training_rows).read_bytes()
    first_dataset = upload(client, "arithmetic", rows)
    job = run_job(client, worker, "", {"name": "first", "queue": "cpu", "stages": [PREPARE, SFT]})
    _, trained = job["runs"]
    assert trained["reused_from"] is None
    assert trained["inputs"]["datasets"]["dataset"]["id"] == job["runs"][0]["result"]["datasets"][0]["id"]
    # A new dataset behind the name changes nothing: a replay reads what the job has read.
    upload(client, "arithmetic", b"".join(rows.splitlines(keepends=True)[:30]))

    repeated = run_job(client, worker, f"/{job['id']}/replay", {"name": "second"})
    assert repeated["runs"][1]["model_id"] != trained["model_id"]
    assert read_weights(repeated["runs"][1]["model_id"]) == read_weights(trained["model_id"])
    difference = client.get(f"/api/v1/jobs/diff?a={job['id']}&b={repeated['id']}").json()
    assert [stage["equal"] for stage in difference["stages"]] == [True, True]
    assert all(
        not stage[name] for stage in difference["stages"] for name in ("config", "inputs", "environment")
    )

    body = {
        "name": "third",
        "queue": "cpu",
        "reuse": True,
        "stages": [
            PREPARE | {"dataset": first_dataset},
            SFT,
            EVALUATE,
            COMPARE,
            GATE | {"needs": ["evaluate"]},
        ],
    }
    evaluated = run_job(client, worker, "", body)
    prepared = repeated["runs"][0]["id"]
    # The rows of the evaluation must not be among those of the training, which is a field of its config.
    assert [run["reused_from"] for run in evaluated["runs"]] == [prepared, None, None, None, None]
    reused = run_job(client, worker, f"/{evaluated['id']}/replay", {"reuse": True})
    # A comparison and a gate decide anew, on the rows that were copied.
    sources = [prepared, *(run["id"] for run in evaluated["runs"][1:3]), None, None]
    assert [run["reused_from"] for run in reused["runs"]] == sources
    assert reused["runs"][1]["model_id"] == evaluated["runs"][1]["model_id"]
    assert reused["runs"][1]["result"] == evaluated["runs"][1]["result"]
    first, second = (
        client.get(f"/api/v1/evaluations?job={one['id']}").json()["items"] for one in (evaluated, reused)
    )
    assert reused["runs"][3]["result"]["n"] == reused["runs"][4]["result"]["n"] == 3
    compared = client.get("/api/v1/comparisons").json()["items"]
    assert {one["job_id"] for one in compared} == {evaluated["id"], reused["id"]}
    assert first[0]["id"] != second[0]["id"] and first[0]["scores"] == second[0]["scores"]
    rows = client.get(f"/api/v1/evaluations/{second[0]['id']}/rows").json()["items"]
    assert len(rows) == 3

    changes = {"changes": {"sft": {"seed": 7, "tuning": {"rank": 8}}}, "reuse": True}
    changed = run_job(client, worker, f"/{job['id']}/replay", changes)
    assert [run["reused_from"] is not None for run in changed["runs"]] == [True, False]
    assert changed["runs"][1]["config"]["tuning"]["method"] == "lora"
    difference = client.get(f"/api/v1/jobs/diff?a={job['id']}&b={changed['id']}").json()
    sft = difference["stages"][1]
    assert not sft["equal"] and {one["field"]: one["b"] for one in sft["config"]} == {
        "seed": 7,
        "tuning.rank": 8,
    }
    assert any(one["field"].endswith("loss") for one in sft["results"]), json.dumps(sft["results"])


def test_the_output_of_a_deleted_model_is_computed_again(
    client: TestClient, worker: WorkerContext, starter: Path, training_rows: str
) -> None:
    shutil.copytree(starter, worker.settings.model_roots[0] / "starter")
    program = Path(worker.settings.trainer_python)
    program.write_text(PROGRAM + "succeed()\n")
    program.chmod(0o755)
    upload(client, "rows", Path(training_rows).read_bytes())
    body = {"name": "job", "queue": "cpu", "reuse": True, "stages": [SFT | {"dataset": "rows"}]}
    (first,), (second,) = (run_job(client, worker, "", body)["runs"] for _ in range(2))
    assert (first["reused_from"], second["reused_from"]) == (None, first["id"])
    assert client.delete(f"/api/v1/models/{first['model_id']}").status_code == 204
    (third,) = run_job(client, worker, "", body)["runs"]
    assert third["reused_from"] is None and third["model_id"] != first["model_id"]


def test_other_weights_of_a_base_or_an_adapter_in_a_folder_are_trained_again(
    client: TestClient, worker: WorkerContext, starter: Path, training_rows: str
) -> None:
    root, program = worker.settings.model_roots[0], Path(worker.settings.trainer_python)
    base = shutil.copytree(starter, root / "starter")
    for name in ("first", "second"):
        write_adapter(root / name, str(base))
    program.write_text(PROGRAM + "succeed()\n")
    program.chmod(0o755)
    upload(client, "rows", Path(training_rows).read_bytes())

    def train(name: str) -> Any:
        stages = [SFT | {"base": name, "dataset": "rows"}]
        body = {"name": "job", "queue": "cpu", "reuse": True, "stages": stages}
        return run_job(client, worker, "", body)["runs"][0]

    first, second = train("first"), train("second")
    # Both have the same base, and so the same adapter by content: the second takes the first one's output.
    assert second["reused_from"] == first["id"]
    assert second["inputs"]["models"]["base"]["adapter"]["origin"] == str(root / "second")
    (root / "second" / "tokenizer_config.json").write_text('{"model_max_length": 99}')
    assert train("second")["reused_from"] is None
    assert train("first")["reused_from"] == first["id"]
    # The base of an adapter decides as well.
    (base / "generation_config.json").write_text('{"temperature": 0.5}')
    assert train("first")["reused_from"] is None


def test_the_parts_of_a_preflight_are_those_of_the_job_that_takes_them(
    client: TestClient, worker: WorkerContext, training_rows: str
) -> None:
    worker.settings.trainer_python = ""
    upload(client, "arithmetic", Path(training_rows).read_bytes())
    body = {"name": "preflight of mine", "queue": "cpu", "reuse": True, "stages": [PREPARE]}
    (checked,) = run_job(client, worker, "", body)["runs"]
    (run,) = run_job(client, worker, "", body | {"name": "mine"})["runs"]
    assert run["reused_from"] == checked["id"]
    listed = client.get("/api/v1/datasets", params={"preflights": False}).json()["items"]
    names = {"arithmetic", "mine-prepare-train", "mine-prepare-test"}
    assert {each["name"] for each in listed} == names
    assert {each["name"] for each in run["result"]["datasets"]} == names - {"arithmetic"}


def test_a_replay_names_the_change_that_is_wrong(
    client: TestClient, worker: WorkerContext, starter: Path, training_rows: str
) -> None:
    shutil.copytree(starter, worker.settings.model_roots[0] / "starter")
    upload(client, "rows", Path(training_rows).read_bytes())
    body = {"name": "job", "queue": "cpu", "stages": [SFT | {"dataset": "rows"}]}
    job_id = client.post("/api/v1/jobs", json=body).json()["id"]
    for changes, field in (
        ({"sftt": {}}, "changes.sftt"),
        ({"sft": {"tuning": {"rank": 0}}}, "changes.sft.tuning.rank"),
        ({"sft": {"learning_rte": 1}}, "changes.sft.learning_rte"),
    ):
        response = client.post(f"/api/v1/jobs/{job_id}/replay", json={"changes": changes})
        assert response.status_code == 422, response.text
        assert field in [one["field"] for one in response.json()["error"]["fields"]], response.text
    with read_session() as session:
        assert len(session.exec(select(Run)).all()) == 1
