"""A file of predictions of any program is scored alone, with the values of an evaluation of the same rows."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sacrebleu

from trainers.configs.metrics import ExactMatch, MetricConfig
from trainers.configs.metrics.general import TokenF1, ToolCalls
from trainers.evaluation.predictions.prediction_file import read_predictions
from trainers.evaluation.predictions.score_file import parse_metrics, render_table, score_file
from trainers.runtime.errors import ConfigInvalid, DatasetInvalid

CALL = {"type": "function", "function": {"name": "time", "arguments": "{}"}}
PROMPT = [{"role": "user", "content": "Say yes."}]


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "line",
    [
        {"row": 1, "prompt": PROMPT, "reference": "yes", "prediction": "yes", "finish_reason": "stop"},
        {"prompt": "Say yes.", "completion": "yes", "prediction": "yes"},
        {"question": "Say yes.", "answer": "yes", "response": "yes"},
        {"messages": [*PROMPT, {"role": "assistant", "content": "yes"}], "predictions": ["yes", "no"]},
        {"source": "Say yes.", "reference": "yes", "responses": ["yes"]},
        {
            "row": 1,
            "prompt": PROMPT,
            "reference": "yes",
            "fields": {},
            "models": {"model": {"responses": ["yes"]}},
        },
    ],
)
def test_lines_of_every_form_are_scored(line: dict[str, Any], tmp_path: Path) -> None:
    predictions = read_predictions(write(tmp_path / "p.jsonl", line))
    [pair] = predictions.pairs
    assert (pair.prompt, pair.completion_text) == (PROMPT, "yes")
    assert predictions.responses["model"][1][0] == "yes"
    [score] = score_file(tmp_path / "p.jsonl", [ExactMatch()]).models[0].scores
    assert (score.value, score.n) == (1, 1)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"prompt": "q", "reference": "a"}, "it has no prediction; its fields are prompt, reference"),
        ({"prompt": "q", "reference": "a", "prediction": 3}, "`prediction` must be a text, null, or a list"),
        ({"prompt": "q", "reference": "a", "responses": []}, "`responses` must be a text"),
        ({"prompt": "q", "reference": 3, "prediction": "a"}, "`reference` must be a text"),
        ({"prompt": 3, "reference": "a", "prediction": "a"}, "`prompt` must be a text or a list of messages"),
        ({"messages": [], "prediction": "a"}, "Row 2"),
        ({"prompt": "q", "reference": "a", "models": {"other": {"responses": ["a"]}}}, "the lines before it"),
        ({"row": 1, "prompt": "q", "reference": "a", "prediction": "a"}, "its row 1 occurs twice"),
    ],
)
def test_a_bad_line_is_named(line: dict[str, Any], reason: str, tmp_path: Path) -> None:
    good = {"prompt": "q", "reference": "a", "prediction": "a"}
    path = write(tmp_path / "p.jsonl", good, line)
    with pytest.raises(DatasetInvalid) as caught:
        read_predictions(path)
    assert f"Line 2 of {path} cannot be scored" in caught.value.message and reason in caught.value.message


def test_a_row_that_a_metric_cannot_score_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", {"prompt": "q", "prediction": "a"})
    with pytest.raises(DatasetInvalid, match=r"Row 1 of .* has no reference"):
        score_file(path, [TokenF1()])


def test_the_rows_of_an_evaluation_are_scored_again_with_other_metrics(tmp_path: Path) -> None:
    """Its models are compared, and what is written can itself be read."""
    lines = [
        {
            "row": row,
            "prompt": PROMPT,
            "reference": "yes",
            "reference_tool_calls": [CALL],
            "fields": {"level": row},
            "models": {
                "model": {"responses": ["yes"], "tool_calls": [CALL], "values": {"bleu": 3}},
                "baseline": {"responses": ["no" if row % 3 else None], "values": {"bleu": 2}},
            },
        }
        for row in range(1, 31)
    ]
    metrics: list[MetricConfig] = [ExactMatch(), ToolCalls()]
    result = score_file(write(tmp_path / "rows.jsonl", *lines), metrics, tmp_path / "out")
    values = {(model.role, score.metric): score.value for model in result.models for score in model.scores}
    assert values == {
        ("model", "exact_match"): 1, ("model", "tool_calls"): 1,
        ("baseline", "exact_match"): 0, ("baseline", "tool_calls"): 0,
    }  # fmt: skip
    assert result.models[1].scores[0].failed == 10
    assert [(one.metric, one.wins, one.verdict) for one in result.differences] == [
        ("exact_match", 30, "better"), ("tool_calls", 30, "better"),
    ]  # fmt: skip
    again = score_file(tmp_path / "out" / "rows.jsonl", metrics)
    assert again.model_dump(exclude={"models": {"__all__": {"model", "provenance"}}}) == (
        result.model_dump(exclude={"models": {"__all__": {"model", "provenance"}}})
    )
    table = render_table(result)
    assert "baseline  tool_calls   0.0000" in table and "exact_match: exact_match|case:mixed" in table


def test_metrics_of_the_command_line_are_names_or_json() -> None:
    assert [one.label for one in parse_metrics(["exact_match", '{"metric": "f1", "name": "overlap"}'])] == [
        "exact_match", "overlap",
    ]  # fmt: skip
    with pytest.raises(ConfigInvalid, match="--metric rouge: Input tag 'rouge'"):
        parse_metrics(["exact_match", "rouge"])
    with pytest.raises(ConfigInvalid, match="--metric is not JSON"):
        parse_metrics(["{metric: f1}"])
    with pytest.raises(ConfigInvalid, match="--metric: two metrics are called 'f1'"):
        parse_metrics(["f1", "f1"])


def test_the_command_prints_a_table_and_writes_the_result(tmp_path: Path) -> None:
    texts = [
        ("The cat sat on the mat.", "A cat sat on the mat."),
        ("It rains a lot today.", "It rains today."),
    ]
    rows = [{"prompt": "q", "reference": reference, "prediction": text} for text, reference in texts]
    path = write(tmp_path / "p.jsonl", *rows)
    command = [
        sys.executable,
        "-m",
        "trainers.evaluate",
        "--predictions",
        str(path),
        "--run-dir",
        str(tmp_path / "run"),
    ]
    shown = subprocess.run(
        [*command, "--metric", "bleu", "--metric", "f1"], capture_output=True, text=True, check=True
    )
    expected = sacrebleu.corpus_bleu(
        [text for text, _ in texts], [[reference for _, reference in texts]]
    ).score
    assert f"bleu    {expected:.4f}" in shown.stdout
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["models"][0]["scores"][0]["value"] == pytest.approx(expected)


def test_a_metric_without_its_options_is_an_error_of_the_command_line() -> None:
    with pytest.raises(ConfigInvalid, match="set either pattern or pattern_field"):
        parse_metrics(["regular_expression"])
