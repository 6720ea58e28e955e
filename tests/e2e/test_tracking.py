"""Runs in MLflow, W&B and TensorBoard.

Goal: a run is found where `tracking` of GET /runs/{id} points to, and is whole there once `complete` is
true. Method: one job on a real worker, read back from the services.
"""

from pathlib import Path
from typing import Any

import httpx2

from tests.e2e.platform import Platform, sft_stage, wait_until
from tests.services import MlflowServer


def wait_until_complete(platform: Platform, run_id: str) -> Any:
    """Wait until all services have received the whole run, which ends before that; return the run."""

    def is_complete() -> bool:
        links = platform.get(f"/runs/{run_id}")["tracking"]
        return len(links) == 3 and all(link["complete"] for link in links)

    wait_until(is_complete, 120, lambda: str(platform.get(f"/runs/{run_id}")["tracking"]))
    return platform.get(f"/runs/{run_id}")


def test_runs_are_found_where_the_api_points_to(embedded: Platform, mlflow: MlflowServer) -> None:
    boards = embedded.folder / "boards"
    embedded.start_worker(
        TUNESMITH_MLFLOW_URI=mlflow.url,
        TUNESMITH_WANDB_PROJECT="tuning",
        TUNESMITH_WANDB_MODE="offline",
        TUNESMITH_TENSORBOARD_DIR=str(boards),
    )
    scored = {"stage": "evaluate", "model": {"stage": "sft"}, "dataset": "test", "max_new_tokens": 4}
    job = embedded.wait_until_finished(embedded.submit(sft_stage(), scored, labels={"team": "maths"}))
    trained, evaluated = [wait_until_complete(embedded, run["id"]) for run in job["runs"]]
    assert job["status"] == "succeeded" and embedded.events(trained["id"], "warning") == []

    links = {link["service"]: link for link in trained["tracking"]}
    assert {link["step"] for link in links.values()} == {20} and len(links) == 3
    assert httpx2.get(links["mlflow"]["url"]).status_code == 200
    run = mlflow.run_of(trained["id"])
    assert links["mlflow"]["run_id"] == run["info"]["run_id"]
    assert (run["info"]["status"], run["info"]["run_name"]) == ("FINISHED", "test-sft")
    assert dict(mlflow.history(run, "loss")) == embedded.losses(trained["id"])
    parameters = {parameter["key"]: parameter["value"] for parameter in run["data"]["params"]}
    assert parameters["max_steps"] == "20" and parameters["tuning.method"] == "lora"
    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
    assert (tags["tunesmith.job_id"], tags["label.team"]) == (job["id"], "maths")
    assert links["wandb"]["run_id"] == trained["id"] and Path(links["wandb"]["url"][7:]).is_dir()
    assert list((boards / f"test-sft-{trained['id'][-8:]}").glob("events.*"))

    score = mlflow.history(mlflow.run_of(evaluated["id"]), "model/maths_exact_match")
    assert [value for _, value in score] == [evaluated["result"]["models"][0]["scores"][0]["value"]]
