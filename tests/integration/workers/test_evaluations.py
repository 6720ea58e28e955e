"""Evaluations of runs: a worker stores their rows and scores together with the end of the run.

Method: programs that write the folder of an evaluation with the real writer.
"""

import json
from collections.abc import Callable
from typing import Any

import pytest
from sqlmodel import select

from app.storage.artifacts import get_store
from app.storage.database import read_session
from app.tables import Evaluation, EvaluationScore, Run, RunStatus
from tests.integration.app.stored_artifacts import set_values
from tests.integration.app.stored_evaluations import METRIC, make_result, make_rows
from tests.integration.workers.conftest import execute_next, row
from trainers.configs import StageKind
from workers.hosts.worker import WorkerContext
from workers.outputs.evaluations import ProducedEvaluation, publish_evaluation

Submit = Callable[..., str]
VALUES = {"model": [1, 0, 1], "baseline": [0, 0, 1]}
WRITE_FOLDER = """
from trainers.evaluation.results import EvaluationResult
from trainers.reports.evaluation_folder import write_evaluation_folder
write("rows.jsonl", ROWS)
write_evaluation_folder(run_dir, EvaluationResult.model_validate_json(RESULT))
write("result.json", RESULT)
"""
SUCCEED = (
    f"RESULT = {make_result(VALUES).model_dump_json()!r}\n"
    f"ROWS = {''.join(json.dumps(each) + chr(10) for each in make_rows(VALUES))!r}\n{WRITE_FOLDER}"
)


@pytest.fixture(autouse=True)
def _poll_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.runs.execute.POLL_SECONDS", 0.05)


def submit_evaluation(worker: WorkerContext, submit: Submit, body: str) -> str:
    run_id, model = submit(body), str(worker.settings.data_dir / "models" / "base")
    config = {
        "stage": "evaluate",
        "model": model,
        "baseline": model,
        "dataset": row(run_id).config["dataset"],
    }
    set_values(Run, run_id, stage=StageKind.evaluate, config=config)
    return run_id


def stored(table: type[Any]) -> list[Any]:
    with read_session() as session:
        return list(session.exec(select(table)).all())


def test_an_evaluate_run_stores_an_evaluation_of_each_model(worker: WorkerContext, submit: Submit) -> None:
    run_id = submit_evaluation(worker, submit, SUCCEED)
    assert execute_next(worker)
    assert row(run_id).status is RunStatus.succeeded
    model, baseline = sorted(stored(Evaluation), key=lambda each: each.role, reverse=True)
    assert (model.role, baseline.role) == ("model", "baseline")
    assert model.artifact == baseline.artifact == f"evaluations/{run_id}/1"
    assert model.dataset_sha256 is not None and len(model.rows_sha256) == 64
    assert {(score.metric, round(score.value, 2)) for score in stored(EvaluationScore)} == {
        (METRIC, 0.67),
        (METRIC, 0.33),
    }
    folder = get_store().fetch_folder(model.artifact, model.sha256)
    assert {path.name for path in folder.iterdir()} >= {"rows.jsonl", "index.jsonl", "rows.parquet"}


INDEX_DAMAGED = '(run_dir / "evaluation/index.jsonl").write_text("{}")'
SCORE_MISSING = 'write("result.json", \'{"stage": "evaluate"}\')'


@pytest.mark.parametrize("damage", [INDEX_DAMAGED, SCORE_MISSING])
def test_an_evaluation_that_is_damaged_is_no_success(
    worker: WorkerContext, submit: Submit, damage: str
) -> None:
    run_id = submit_evaluation(worker, submit, f"{SUCCEED}\n{damage}\n")
    assert execute_next(worker)
    assert row(run_id).status is RunStatus.queued
    assert stored(Evaluation) == []


def test_an_attempt_that_loses_its_run_while_it_publishes_stores_no_evaluation(
    worker: WorkerContext, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = submit_evaluation(worker, submit, SUCCEED)

    def publish_too_late(*arguments: Any) -> ProducedEvaluation:
        produced = publish_evaluation(*arguments)
        set_values(Run, run_id, attempt=2)
        return produced

    monkeypatch.setattr("workers.runs.complete.publish_evaluation", publish_too_late)
    assert execute_next(worker)
    assert row(run_id).status is RunStatus.running
    assert stored(Evaluation) == stored(EvaluationScore) == []
