"""A job's runs can be followed in MLflow, W&B and TensorBoard, and the API says where."""

from pathlib import Path

import httpx2

from tests.e2e.platform import Platform, sft
from tests.services import MlflowServer


def test_a_job_s_runs_are_found_where_the_api_says(embedded: Platform, mlflow: MlflowServer) -> None:
    boards = embedded.folder / "boards"
    embedded.start_worker(
        TUNESMITH_MLFLOW_URI=mlflow.url,
        TUNESMITH_WANDB_PROJECT="tuning",
        TUNESMITH_WANDB_MODE="offline",
        TUNESMITH_TENSORBOARD_DIR=str(boards),
        TUNESMITH_TRACKING_FLUSH_SECONDS="60",
    )
    scored = {"stage": "evaluate", "model": {"stage": "sft"}, "dataset": "test", "max_new_tokens": 4}
    job = embedded.finish(embedded.submit(sft(), scored, labels={"team": "maths"}))
    trained, evaluated = job["runs"]
    assert job["status"] == "succeeded" and embedded.events(trained["id"], "warning") == []

    links = {link["service"]: link for link in trained["tracking"]}
    assert {link["step"] for link in links.values()} == {20} and len(links) == 3
    assert httpx2.get(links["mlflow"]["url"]).status_code == 200
    run = mlflow.run_of(trained["id"])
    assert links["mlflow"]["run_id"] == run["info"]["run_id"]
    assert (run["info"]["status"], run["info"]["run_name"]) == ("FINISHED", "test/sft")
    assert dict(mlflow.history(run, "loss")) == embedded.losses(trained["id"])
    parameters = {parameter["key"]: parameter["value"] for parameter in run["data"]["params"]}
    assert parameters["max_steps"] == "20" and parameters["tuning.method"] == "lora"
    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
    assert (tags["tunesmith.job_id"], tags["label.team"]) == (job["id"], "maths")
    assert links["wandb"]["run_id"] == trained["id"] and Path(links["wandb"]["url"][7:]).is_dir()
    assert list((boards / job["id"] / "sft").glob("events.*"))

    score = mlflow.history(mlflow.run_of(evaluated["id"]), "result.model.score")
    assert [value for _, value in score] == [evaluated["result"]["model"]["score"]]
