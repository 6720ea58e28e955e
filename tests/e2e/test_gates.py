"""Goal: a gate decides which stages run. Method: three jobs on one service, with tiny real models."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import run_platform
from tests.e2e.platform import Platform

Stage = dict[str, Any]

SFT: Stage = {"stage": "sft", "base": "starter", "dataset": "train", "max_steps": 1, "batch_size": 4}
EVALUATE: Stage = {
    "stage": "evaluate",
    "model": {"stage": "sft"},
    "baseline": "starter",
    "dataset": "test",
    "max_rows": 6,
    "max_new_tokens": 4,
}
MERGE: Stage = {"stage": "merge", "model": {"stage": "sft"}}
DEPLOY: Stage = {"stage": "deploy", "model": {"stage": "merge"}, "deployment": "tuned", "engine": "hf"}
# One step changes next to nothing: the tuned model is as good as its base, and not better by 90 points.
MET: Stage = {"stage": "gate", "evaluation": "evaluate", "against": "baseline", "on": "test", "margin": 0.9}
NOT_MET: Stage = {**MET, "on": "value", "margin": -0.9}
RESCUE: Stage = {
    "stage": "prepare",
    "name": "rescue",
    "dataset": "train",
    "split": {"test": 2},
    "needs": ["gate"],
    "when": "not_met",
}

Jobs = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def platform(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Yield an installation with a worker that starts programs warm."""
    folder = tmp_path_factory.mktemp("gates") / "data"
    with run_platform(Platform(folder, starter, TUNESMITH_WARM_START="true")) as platform:
        platform.start_worker()
        yield platform


@pytest.fixture(scope="module")
def jobs(platform: Platform) -> Jobs:
    """Return three finished jobs, which ran side by side."""
    chains: dict[str, list[Stage]] = {
        "met": [SFT, EVALUATE, MET, MERGE, DEPLOY],
        "stopped": [SFT, EVALUATE, NOT_MET, MERGE, DEPLOY],
        "rescued": [SFT, EVALUATE, NOT_MET, MERGE, RESCUE],
    }
    ids = {name: platform.submit(*stages) for name, stages in chains.items()}
    return {name: platform.wait_until_finished(job_id) for name, job_id in ids.items()}


def statuses(job: dict[str, Any]) -> dict[str, str]:
    return {"job": job["status"], **{run["name"]: run["status"] for run in job["runs"]}}


def test_a_gate_that_is_met_leads_to_the_deployment(platform: Platform, jobs: Jobs) -> None:
    assert set(statuses(jobs["met"]).values()) == {"succeeded"}, jobs["met"]
    decision = jobs["met"]["runs"][2]["result"]
    assert (decision["met"], decision["n"], decision["metric"]) == (True, 6, "maths_exact_match")
    assert platform.get("/deployments", status="ready")["items"]


def test_a_gate_that_is_not_met_stops_the_job_with_the_values(jobs: Jobs) -> None:
    after = statuses(jobs["stopped"])
    assert (after["job"], after["gate"]) == ("failed", "failed")
    assert (after["merge"], after["deploy"]) == ("skipped", "skipped")
    error = jobs["stopped"]["error"]
    assert error["code"] == "gate_not_met" and "must be at least 0.9" in error["message"]
    assert error["details"]["difference"] < 0.9 and error["details"]["limit"] == 0.9


def test_a_branch_for_a_gate_that_is_not_met_runs_instead(jobs: Jobs) -> None:
    after = statuses(jobs["rescued"])
    assert (after["job"], after["gate"]) == ("succeeded", "failed")
    assert (after["merge"], after["rescue"]) == ("skipped", "succeeded")
