"""Sweeps: the stages that they become, which are refused, and what follows when runs of one fail."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlmodel import select
from starlette.testclient import TestClient

from app.runs import lifecycle
from app.runs.attempt_outcome import AttemptOutcome
from app.storage.database import transaction
from app.tables import Dataset, Run, RunStatus, Worker
from tests.integration.app.test_graph import claim_names, end, statuses
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import ProgramError

SFT = {"stage": "sft", "base": "org/base", "dataset": "train", "validation_dataset": "validation"}
SWEEP = {"learning_rate": [0.1, 0.2], "tuning.rank": [4, 8]}
MERGE = {"stage": "merge", "model": {"stage": "sft"}}


class TryFailed(ProgramError):
    code = ErrorCode.config_invalid


@pytest.fixture(autouse=True)
def datasets(make_dataset: Callable[..., Dataset]) -> None:
    """Store the datasets of the jobs."""
    make_dataset("train")
    make_dataset("validation")
    make_dataset("test", row_count=300)


def post(client: TestClient, *stages: dict[str, Any], path: str = "") -> dict[str, Any]:
    return dict(client.post(f"/api/v1/jobs{path}", json={"name": "job", "stages": list(stages)}).json())


def fail(job: dict[str, Any], name: str) -> None:
    """Fail a run that a worker holds."""
    with transaction() as session:
        run = session.exec(select(Run).where(Run.job_id == job["id"], Run.name == name)).one()
        failed = AttemptOutcome(TryFailed("It failed."))
        lifecycle.end_attempt(session, run.id, failed, lifecycle.lease_guards(run.attempt), max_failures=0)


def test_a_sweep_becomes_a_run_for_each_combination_and_one_that_selects(client: TestClient) -> None:
    plan = post(client, {**SFT, "sweep": SWEEP, "sweep_max_seconds": 400}, MERGE, path="/dry-run")
    stages = {stage["name"]: stage for stage in plan["stages"]}
    assert list(stages) == ["sft-1", "sft-2", "sft-3", "sft-4", "sft", "merge"]
    found = [
        (stages[f"sft-{n}"]["config"]["learning_rate"], stages[f"sft-{n}"]["config"]["tuning"]["rank"])
        for n in range(1, 5)
    ]
    assert found == [(0.1, 4), (0.1, 8), (0.2, 4), (0.2, 8)]
    assert stages["sft-3"]["needs"] == []
    assert stages["sft-3"]["config"]["limits"]["max_seconds"] == 100
    assert stages["sft"]["needs"] == ["sft-1", "sft-2", "sft-3", "sft-4"]
    assert stages["sft"]["config"]["tries"][2]["values"] == {"learning_rate": 0.2, "tuning.rank": 4}


def test_a_maximum_of_runs_tries_the_same_sample_each_time(client: TestClient) -> None:
    sweep = {"sweep": {"seed": list(range(10)), "tuning.rank": list(range(1, 11))}, "sweep_max_runs": 3}
    first, second = (post(client, {**SFT, **sweep}, path="/dry-run")["stages"][-1] for _ in range(2))
    assert len(first["config"]["tries"]) == 3
    assert first["config"]["combinations"] == 100
    assert first["config"] == second["config"]


def test_all_runs_of_a_sweep_over_batch_sizes_validate_in_equal_batches(client: TestClient) -> None:
    plan = post(client, {**SFT, "sweep": {"batch_size": [12, 16, 32]}}, path="/dry-run")
    assert [stage["config"].get("micro_batch_size") for stage in plan["stages"]] == [4, 4, 4, None]


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"sweep": {"tuning.rank": [4, 0]}}, "sweep.tuning.rank.1", "greater than or equal to 1"),
        ({"sweep": {"learning_rate": [0.1, "x"]}}, "sweep.learning_rate.1", "valid number"),
        ({"sweep": {"seed": [1, 1]}}, "sweep.seed.1", "listed twice"),
        ({"sweep": {"max_length": [64, 128]}}, "sweep.max_length", "cannot vary max_length"),
        ({"sweep": {"seed": []}}, "sweep.seed", ""),
        ({"sweep": {"seed": list(range(16)), "max_steps": [1, 2]}}, "sweep", "32 runs; at most 16"),
        ({"sweep": SWEEP, "validation_dataset": None}, "", "needs a validation_dataset"),
        ({"sweep": SWEEP, "dataset": "nonesuch"}, "dataset", "No dataset has the id or name 'nonesuch'"),
    ],
)
def test_a_sweep_that_cannot_run_is_refused_with_its_field(
    client: TestClient, fields: dict[str, Any], field: str, words: str
) -> None:
    first = {**SFT, "name": "first", "sweep": {"seed": [1, 2]}}
    body = post(client, first, {**SFT, **fields})
    errors = [each for each in body["error"]["fields"] if words in each["message"]]
    assert [each["field"].removesuffix(".") for each in errors] == [f"stages.1.{field}".removesuffix(".")]


def test_a_failed_run_of_a_sweep_does_not_fail_the_job(
    client: TestClient, make_worker: Callable[..., Worker]
) -> None:
    worker = make_worker()
    job = post(client, {**SFT, "queue": "cpu", "sweep": {"seed": [1, 2]}}, {**MERGE, "queue": "cpu"})
    assert claim_names(worker) == ["sft-1", "sft-2"]
    fail(job, "sft-1")
    assert claim_names(worker) == []
    end(job, "sft-2", RunStatus.succeeded)
    assert claim_names(worker) == ["sft"]
    end(job, "sft", RunStatus.succeeded)
    assert claim_names(worker) == ["merge"]
    end(job, "merge", RunStatus.succeeded)
    assert statuses(client, job) == {
        "job": "succeeded",
        "sft-1": "failed",
        "sft-2": "succeeded",
        "sft": "succeeded",
        "merge": "succeeded",
    }


def test_no_run_of_a_sweep_starts_when_its_data_failed(
    client: TestClient, make_worker: Callable[..., Worker]
) -> None:
    worker = make_worker()
    prepare = {"stage": "prepare", "dataset": "train", "split": {"test": 1}}
    job = post(client, prepare, {**SFT, "queue": "cpu", "sweep": {"seed": [1, 2]}})
    assert claim_names(worker) == ["prepare"]
    fail(job, "prepare")
    assert set(statuses(client, job).values()) == {"failed", "cancelled"}


def test_no_gate_decides_on_the_rows_that_selected_the_best_run(client: TestClient) -> None:
    evaluate = {
        "stage": "evaluate",
        "model": {"stage": "sft"},
        "baseline": "org/base",
        "dataset": "validation",
    }
    gate = {"stage": "gate", "evaluation": "evaluate", "against": "baseline"}
    body = post(client, {**SFT, "sweep": SWEEP}, evaluate, gate)
    assert [each["field"] for each in body["error"]["fields"]] == ["stages.2.evaluation"]
    assert "have selected the model" in body["error"]["message"]
    assert post(client, {**SFT, "sweep": SWEEP}, {**evaluate, "dataset": "test"}, gate)["status"] == "queued"


def test_runs_whose_losses_cannot_be_compared_are_not_selected_from(client: TestClient) -> None:
    tries = [{"stage": "a"}, {"stage": "b"}]
    choice = {"stage": "select", "tries": tries, "needs": ["a", "b"]}
    body = post(client, {**SFT, "name": "a"}, {**SFT, "name": "b", "max_length": 64}, choice)
    assert [each["field"] for each in body["error"]["fields"]] == ["stages.2.tries.1.stage"]
    assert "differs from 'a' in max_length" in body["error"]["message"]


def test_a_replay_repeats_the_runs_of_a_sweep(client: TestClient, make_worker: Callable[..., Worker]) -> None:
    make_worker()
    job = post(
        client,
        {**SFT, "sweep": {"seed": list(range(1, 16))}},
        *[{**MERGE, "name": f"m{n}"} for n in range(9)],
    )
    replay = client.post(f"/api/v1/jobs/{job['id']}/replay", json={})
    assert replay.status_code == 201, replay.text
    names = [[run["name"] for run in each["runs"]] for each in (job, replay.json())]
    assert len(names[0]) == 25
    assert names[0] == names[1]
