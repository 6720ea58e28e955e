"""Replays and differences of jobs over HTTP, without a worker."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlmodel import select
from starlette.testclient import TestClient

from app.demos.examples import TEST, TRAIN
from app.jobs.examples import JOB_EXAMPLES
from app.models.starter import STARTER
from app.settings import Settings
from app.storage.database import transaction
from app.tables import Dataset, Job, Run
from tests.integration.app.test_deployments import insert_row


@pytest.fixture(autouse=True)
def inputs(client: TestClient, make_dataset: Callable[..., Dataset], settings: Settings) -> None:
    """Store the datasets, the model and the alias of the examples."""
    for dataset in (TRAIN, TEST):
        make_dataset(dataset)
    (settings.model_roots[0] / STARTER).mkdir(parents=True)
    insert_row(name="starter")
    client.put("/api/v1/aliases/starter-prod", json={"targets": [{"deployment": "starter"}]})


def post(client: TestClient, path: str, body: Any) -> dict[str, Any]:
    response = client.post(f"/api/v1/jobs{path}", json=body)
    assert response.status_code == 201, response.text
    return dict(response.json())


@pytest.mark.parametrize("name", JOB_EXAMPLES)
def test_a_replay_of_every_example_has_the_same_stages(client: TestClient, name: str) -> None:
    job = post(client, "", JOB_EXAMPLES[name]["value"])
    again = post(client, f"/{job['id']}/replay", {"name": "again"})
    for field in ("name", "config", "queue", "needs", "when"):
        assert [run[field] for run in again["runs"]] == [run[field] for run in job["runs"]], field
    difference = client.get("/api/v1/jobs/diff", params={"a": job["id"], "b": again["id"]}).json()
    assert [stage["config"] for stage in difference["stages"]] == [[]] * len(job["runs"])


def test_a_replay_of_a_job_with_an_older_name_leaves_out_what_a_name_may_not_have(client: TestClient) -> None:
    job = post(client, "", JOB_EXAMPLES["arithmetic"]["value"])
    with transaction() as session:
        row = session.get_one(Job, job["id"])
        row.name, row.labels = "a\u202eb", {"team": "\u2066c"}
    again = post(client, f"/{job['id']}/replay", {})
    assert (again["name"], again["labels"]) == ("ab", {"team": "c"})


def test_a_job_whose_stages_this_version_does_not_know_is_shown_but_not_replayed(client: TestClient) -> None:
    job = post(client, "", JOB_EXAMPLES["arithmetic"]["value"])
    with transaction() as session:
        run = session.exec(select(Run).where(Run.job_id == job["id"], Run.name == "sft")).one()
        run.config = {**run.config, "a_field_of_old": 1}
    response = client.post(f"/api/v1/jobs/{job['id']}/replay", json={})
    assert response.status_code == 422, response.text
    error = response.json()["error"]
    assert "a_field_of_old" in error["message"], error
    assert client.get(f"/api/v1/jobs/{job['id']}").status_code == 200
    changes = {"changes": {"sft": {"a_field_of_old": None}}}
    assert client.post(f"/api/v1/jobs/{job['id']}/replay", json=changes).status_code == 201


def test_a_replay_has_the_commit_of_an_adapter_of_the_hub_rather_than_of_its_base(client: TestClient) -> None:
    stage = {"stage": "sft", "base": "org/adapter", "dataset": TRAIN, "tuning": {"method": "lora"}}
    job = post(client, "", {"name": "continued", "stages": [stage]})
    base, adapter = f"org/base@{'b' * 40}", f"org/adapter@{'a' * 40}"
    model = {
        "model_id": None,
        "base": {"origin": base, "sha256": None},
        "adapter": {"origin": adapter, "sha256": None},
        "checkpoint": None,
    }
    with transaction() as session:
        run = session.exec(select(Run).where(Run.job_id == job["id"])).one()
        run.inputs = {"models": {"base": model}, "datasets": {}, "code_sha256": "c" * 64}
    again = post(client, f"/{job['id']}/replay", {})
    assert again["runs"][0]["config"]["base"] == adapter
    # The replay has read nothing yet, which is no difference.
    difference = client.get("/api/v1/jobs/diff", params={"a": job["id"], "b": again["id"]}).json()
    (shown,) = difference["stages"]
    assert (shown["equal"], shown["inputs"], shown["environment"]) == (False, [], [])
    assert [one["field"] for one in shown["config"]] == ["base"]
