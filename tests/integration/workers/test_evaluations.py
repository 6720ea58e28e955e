"""Evaluations of runs: a worker stores their rows and scores together with the end of the run.

Method: programs that write the folder of an evaluation with the real writer.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select

from app.comparisons.schemas import ComparisonCreate
from app.comparisons.service import create_comparison
from app.settings import EvaluationEndpoint
from app.storage.database import read_session, transaction
from app.storage.opening import get_store
from app.tables import Comparison, Evaluation, EvaluationScore, Run, RunStatus
from tests.integration.app.conftest import make_job
from tests.integration.app.stored_artifacts import set_values
from tests.integration.app.stored_evaluations import METRIC, make_result, make_rows, store_evaluations
from tests.integration.workers.conftest import execute_next, row
from trainers.configs import EvaluationFolder, StageEvaluation, StageKind
from workers.hosts.worker import WorkerContext
from workers.inputs.errors import InputEvaluationNotFound, InputRefused
from workers.inputs.evaluations import fetch_evaluation
from workers.outputs.evaluations import ProducedEvaluation, publish_evaluation

__all__ = ["make_job"]

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
    """Queue an `evaluate` run of endpoints, which need no engine, whose program has this body."""
    worker.settings.evaluation_endpoints = {"mine": EvaluationEndpoint(url="http://127.0.0.1:9/v1")}
    run_id, model = submit(body), {"endpoint": "mine", "model": "m"}
    dataset = row(run_id).config["dataset"]
    config = {"stage": "evaluate", "model": model, "baseline": model, "dataset": dataset}
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


def test_a_comparison_of_stored_evaluations_runs_on_a_worker(
    worker: WorkerContext, make_job: Callable[..., list[Run]], tmp_path: Path
) -> None:
    worker.settings.trainer_python = sys.executable
    model, baseline = store_evaluations(make_job, tmp_path, {"model": [1.0] * 8, "baseline": [0.0] * 8})
    body = ComparisonCreate(evaluations=[model.id, baseline.id])
    with transaction() as session:
        job = create_comparison(session, worker.settings, body, "")
    assert execute_next(worker)
    (comparison,) = stored(Comparison)
    assert (comparison.job_id, comparison.n) == (job.id, 8)
    assert comparison.evaluations == [model.id, baseline.id]
    (difference,) = comparison.result["differences"]
    assert (difference["role"], difference["other"]) == (model.id, baseline.id)
    assert (difference["difference"], difference["verdict"]) == (1.0, "better")


def test_a_comparison_reads_the_evaluations_of_earlier_stages_of_its_job(
    worker: WorkerContext, make_job: Callable[..., list[Run]], tmp_path: Path
) -> None:
    (own,) = store_evaluations(make_job, tmp_path, {"model": [1.0]})
    found = fetch_evaluation(own.job_id, StageEvaluation(stage="stage0"))
    assert found.id == own.id and Path(found.folder, "rows.jsonl").is_file()
    with pytest.raises(InputEvaluationNotFound, match="model 'baseline' by the stage 'stage0'"):
        fetch_evaluation(own.job_id, StageEvaluation(stage="stage0", role="baseline"))
    with pytest.raises(InputRefused, match="not by folders"):
        fetch_evaluation(own.job_id, EvaluationFolder(folder="/etc"))
