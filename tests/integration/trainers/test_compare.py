"""The program `compare`: rows of stored evaluations are paired by prompt and reference.

Method: folders that the real writer wrote, compared by the functions of the program in this process; each
value is checked against the statistics library or against a number that a person can count.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.integration.app.stored_evaluations import EXACT, METRIC, make_result, make_rows, write_folder
from trainers.compare import plan, run
from trainers.comparison.common_rows import EvaluationsDiffer
from trainers.comparison.stored_evaluation import EvaluationUnreadable
from trainers.configs.stages.evaluations.compare import CompareConfig
from trainers.evaluation.results import EvaluationResult
from trainers.runtime.errors import ConfigInvalid
from trainers.runtime.events import EventWriter

RIGHT, HALF = [1.0] * 12, [1.0, 0.0] * 6


def store(
    folder: Path,
    values: Sequence[float],
    prompts: Sequence[str] | None = None,
    signature: str = EXACT,
    **provenance: Any,
) -> dict[str, str]:
    """Write an evaluation of one model, and return it as a config names it."""
    result = make_result({"model": values}, signature)
    model = result.models[0].model_copy(update={"provenance": provenance})
    result = result.model_copy(update={"models": [model]})
    return {"folder": str(write_folder(folder, result, make_rows({"model": values}, prompts)))}


def compare(tmp_path: Path, *evaluations: object, **fields: Any) -> EvaluationResult:
    config = CompareConfig(evaluations=list(evaluations), **fields)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    with EventWriter(run_dir / "events.jsonl") as events:
        return EvaluationResult.model_validate(run(config, run_dir, events))


def test_the_first_evaluation_is_compared_with_each_other_one(tmp_path: Path) -> None:
    folders = [store(tmp_path / name, values) for name, values in (("a", RIGHT), ("b", HALF), ("c", RIGHT))]
    result = compare(tmp_path, *folders)
    better, equal = result.differences
    assert (better.difference, better.wins, better.losses, better.ties) == (0.5, 6, 0, 6)
    # Mid-p of six discordant rows, all won: 2 · ½ · 0.5⁶ = 0.0156; Holm doubles it.
    assert (round(better.p_value, 4), round(better.p_adjusted, 4)) == (0.0156, 0.0312)
    assert (better.verdict, equal.verdict, equal.ties) == ("better", "undecided", 12)
    assert [model.scores[0].value for model in result.models] == [1.0, 0.5, 1.0]
    assert result.warnings == []


def test_the_clusters_of_an_evaluation_are_respected(tmp_path: Path) -> None:
    clustered = make_result({"model": RIGHT}).model_copy(update={"clusters": "document"})
    rows = [row | {"fields": {"document": i // 6}} for i, row in enumerate(make_rows({"model": RIGHT}))]
    folder = write_folder(tmp_path / "a", clustered, rows)
    result = compare(tmp_path, {"folder": str(folder)}, store(tmp_path / "b", HALF))
    assert (result.clusters, result.differences[0].verdict) == ("document", "undecided")
    assert result.differences[0].method.startswith("paired permutation")


def test_rows_are_paired_by_prompt_and_reference_and_the_others_are_named(tmp_path: Path) -> None:
    first = store(tmp_path / "a", [1, 0, 1], ["x", "y", "z"])
    second = store(tmp_path / "b", [1, 1, 1, 0], ["z", "y", "w", "v"])
    result = compare(tmp_path, first, second)
    assert (result.n, result.differences[0].losses, result.differences[0].ties) == (2, 1, 1)
    assert [text.split(" of ")[0] for text in result.warnings] == ["1", "2"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "rows.jsonl").read_text().splitlines()]
    labels = [model.role for model in result.models]
    assert [row["models"][labels[1]]["responses"] for row in rows] == [["model says 2"], ["model says 1"]]


def test_unequal_signatures_and_conditions_are_named(tmp_path: Path) -> None:
    first = store(tmp_path / "a", RIGHT, engine="hf", model={"sha256": "1"}, sampling={"seed": 1})
    second = store(
        *(tmp_path / "b", HALF),
        signature=f"{EXACT}2",
        engine="vllm",
        model={"sha256": "2"},
        sampling={"seed": 1},
    )
    signatures, conditions = compare(tmp_path, first, second).warnings
    assert "exact_match was measured in different ways" in signatures
    assert conditions.endswith("were evaluated under different conditions: engine (hf and vllm).")


def test_a_corpus_metric_is_computed_again_from_the_responses(tmp_path: Path) -> None:
    config = {"metric": "bleu", "tokenizer": "13a"}
    folders = []
    for name, response in (("a", "the cat sat on the mat today"), ("b", "a cat was on some mat today")):
        rows = make_rows({"model": [0.0, 0.0]})
        for row in rows:
            row["reference"] = "the cat sat on the mat today"
            row["models"]["model"] = {"responses": [response], "values": {"bleu": 1.0}}
        result = make_result({"model": [0.0, 0.0]})
        score = result.models[0].scores[0].model_copy(update={"metric": "bleu", "value": 50.0})
        model = result.models[0].model_copy(update={"scores": [score]})
        result = result.model_copy(update={"models": [model], "metrics": [config]})
        folders.append({"folder": str(write_folder(tmp_path / name, result, rows))})
    result = compare(tmp_path, *folders)
    assert result.models[0].scores[0].value == pytest.approx(100)
    assert 0 < result.models[1].scores[0].value < 50


@pytest.mark.parametrize(
    ("second", "metrics", "error"),
    [
        (["other"], None, "no row in common"),
        (["question 1"], ["bleu"], "'bleu'; they have in common: exact_match"),
    ],
)
def test_evaluations_that_cannot_be_compared_are_an_error(
    tmp_path: Path, second: list[str], metrics: list[str] | None, error: str
) -> None:
    folders = store(tmp_path / "a", [1]), store(tmp_path / "b", [1], second)
    with pytest.raises(EvaluationsDiffer, match=error):
        plan(CompareConfig(evaluations=list(folders), metrics=metrics))


def test_an_evaluation_that_is_missing_or_needs_a_job_is_an_error(tmp_path: Path) -> None:
    folder = store(tmp_path / "a", [1])
    with pytest.raises(EvaluationUnreadable, match="has no model 'baseline'; it has model"):
        plan(CompareConfig(evaluations=[folder, folder | {"role": "baseline"}]))
    with pytest.raises(EvaluationUnreadable, match="cannot be read"):
        plan(CompareConfig(evaluations=[folder, {"folder": str(tmp_path / "b")}]))
    with pytest.raises(ConfigInvalid, match="only a job can resolve"):
        plan(CompareConfig(evaluations=[{"stage": "evaluate"}, folder]))


def test_the_folder_of_a_comparison_has_its_rows_and_reports(tmp_path: Path) -> None:
    compare(tmp_path, store(tmp_path / "a", RIGHT), store(tmp_path / "b", HALF))
    folder = tmp_path / "run" / "evaluation"
    assert {path.name for path in folder.iterdir()} == {
        "result.json",
        "rows.jsonl",
        "index.jsonl",
        "rows.parquet",
        "report.html",
        "report.md",
    }
    assert METRIC in (folder / "report.html").read_text()
