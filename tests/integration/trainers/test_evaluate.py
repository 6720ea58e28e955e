"""Scores of real models, also after the process was stopped."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.integration.trainers.conftest import Programs, events, wait_for
from tests.integration.trainers.stages import run_stage
from trainers.configs import parse_stage
from trainers.evaluation.results import EvaluationResult
from trainers.metrics.maths.final_answer import exact_match
from trainers.runtime import run_dir as files
from trainers.runtime.errors import DatasetInvalid


@pytest.fixture(scope="module")
def config(starter: Path, held_out_rows: str) -> dict[str, Any]:
    return {
        "stage": "evaluate",
        "model": str(starter),
        "baseline": str(starter),
        "dataset": held_out_rows,
        "batch_size": 16,
        "max_new_tokens": 12,
    }


@pytest.fixture(scope="module")
def run(config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("evaluate") / "run"
    run_stage(config, run_dir)
    return run_dir


def rows(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "rows.jsonl").read_text().splitlines()]


def test_result_counts_what_the_rows_say(run: Path) -> None:
    result = EvaluationResult.model_validate(files.read_result(run))
    share = sum(row["models"]["model"]["values"]["maths_exact_match"] for row in rows(run)) / 40
    score = result.models[0].scores[0]
    assert (score.metric, score.value, score.n, score.failed) == ("maths_exact_match", share, 40, 0)
    assert (result.n, result.rows, score.signature) == (40, "rows.jsonl", "maths_exact_match")
    assert score.interval_95 is not None
    assert score.interval_95[0] <= share <= score.interval_95[1]


def test_several_metrics_score_the_same_responses(config: dict[str, Any], run: Path, tmp_path: Path) -> None:
    exact = {"metric": "exact_match", "name": "exact", "ignore_case": True}
    shutil.copyfile(run / "predictions.jsonl", tmp_path / "predictions.jsonl")
    result = run_stage(config | {"metrics": ["maths_exact_match", exact]}, tmp_path)
    assert result is not None
    assert [score["metric"] for score in result["models"][0]["scores"]] == ["maths_exact_match", "exact"]
    assert rows(tmp_path)[0]["models"]["model"]["values"].keys() == {"maths_exact_match", "exact"}


def test_model_that_is_its_own_baseline_shows_no_difference(run: Path) -> None:
    result = EvaluationResult.model_validate(files.read_result(run))
    model, baseline = result.models
    assert (model.role, baseline.role) == ("model", "baseline")
    assert model.scores == baseline.scores
    (difference,) = result.differences
    assert (difference.wins, difference.losses, difference.ties) == (0, 0, difference.n)
    assert (difference.difference, difference.p_value, difference.verdict) == (0, 1, "undecided")


def test_the_former_field_for_one_metric_names_its_successor(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="Did you mean metrics"):
        parse_stage(config | {"metric": "maths_exact_match"})


def test_rows_keep_the_order_of_the_dataset_with_their_own_answers(run: Path, held_out_rows: str) -> None:
    dataset = [json.loads(line) for line in Path(held_out_rows).read_text().splitlines()]
    assert [row["row"] for row in rows(run)] == list(range(1, 41))
    for row, source in zip(rows(run), dataset, strict=True):
        assert row["prompt"] == [{"role": "user", "content": source["question"]}]
        assert row["reference"] == source["answer"]
        scored = row["models"]["model"]
        right = exact_match(scored["responses"][0], source["answer"])
        assert scored["values"] == {"maths_exact_match": float(right)}


def test_progress_counts_answers_of_both_models(run: Path) -> None:
    progress = events(run, "progress")
    assert (progress[0]["step"], progress[-1]["step"], progress[-1]["total_steps"]) == (0, 80, 80)


def test_stopped_evaluation_goes_on_to_the_same_answers(
    programs: Programs, config: dict[str, Any], run: Path, tmp_path: Path
) -> None:
    process = programs.start("trainers.evaluate", config | {"batch_size": 16, "max_new_tokens": 12}, tmp_path)
    wait_for((tmp_path / "predictions.jsonl").exists, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, (tmp_path / "result.json").exists()) == (75, False), err
    kept = (tmp_path / "predictions.jsonl").read_bytes()
    (tmp_path / "predictions.jsonl").write_bytes(kept + b'{"by": "model", "row": 40, "pred')

    run_stage(config, tmp_path)
    assert (tmp_path / "predictions.jsonl").read_bytes().startswith(kept)
    assert rows(tmp_path) == rows(run)
    assert files.read_result(tmp_path) == files.read_result(run)


def test_reference_without_a_number_is_refused(config: dict[str, Any], tmp_path: Path) -> None:
    dataset = tmp_path / "rows.jsonl"
    dataset.write_text('{"question": "2?", "answer": "#### 2"}\n{"question": "x?", "answer": "unknown"}\n')
    with pytest.raises(DatasetInvalid, match="Row 2"):
        run_stage(config | {"dataset": str(dataset)}, tmp_path / "run")
