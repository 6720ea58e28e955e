"""A sweep on a worker: each run is trained, and the model with the lowest validation loss is the stage's.

Method: a worker in this process runs the real programs.
"""

import shutil
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.integration.app.conftest import client
from tests.integration.trainers.conftest import training_rows, write_rows
from tests.integration.workers.test_replay import SFT, run_job, upload
from workers.hosts.worker import WorkerContext

__all__ = ["client", "training_rows", "write_rows"]

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def test_the_best_run_of_a_sweep_becomes_the_model_of_its_stage(
    client: TestClient, worker: WorkerContext, starter: Path, training_rows: str
) -> None:
    worker.settings.trainer_python = ""
    shutil.copytree(starter, worker.settings.model_roots[0] / "starter")
    rows = Path(training_rows).read_bytes().splitlines(keepends=True)
    upload(client, "train", b"".join(rows[:-40]))
    upload(client, "validation", b"".join(rows[-40:]))
    sweep = {"dataset": "train", "validation_dataset": "validation", "sweep": {"learning_rate": [5e-3, 1e-6]}}
    generate = {"stage": "generate", "model": {"stage": "sft"}, "dataset": "validation", "max_rows": 1}
    stages = [SFT | sweep, generate | {"max_new_tokens": 2}]
    job = run_job(client, worker, "", {"name": "sweep", "queue": "cpu", "stages": stages})
    first, second, selected, generated = job["runs"]
    result = selected["result"]
    assert (result["chosen"], result["values"]) == ("sft-2", {"learning_rate": 1e-6})
    assert selected["model_id"] == second["model_id"] != first["model_id"]
    assert generated["inputs"]["models"]["model"]["model_id"] == second["model_id"]
    assert [each["loss"] for each in result["tries"]] == [
        run["result"]["metrics"]["best_validation_loss"] for run in (first, second)
    ]
    assert all(each["low"] < each["loss"] < each["high"] for each in result["tries"])
    corrected = result["corrected_loss"]
    assert corrected["low"] < corrected["value"] < corrected["high"]
