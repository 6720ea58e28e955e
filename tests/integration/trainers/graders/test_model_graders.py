"""Graders that ask a model over HTTP, and the metric that grades an evaluation's responses.

The model is a server in this process that answers by a rule, so that each score is known beforehand.
"""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.trainers.metrics.judge_server import JudgeServer, completion, serve_judge
from trainers import evaluate
from trainers.configs import parse_stage
from trainers.configs.graders import GRADER
from trainers.configs.metrics.grader import GraderScore
from trainers.configs.stages.evaluate import EvaluateConfig
from trainers.evaluation.results import EvaluationResult
from trainers.evaluation.scores import make_score
from trainers.graders.__main__ import main
from trainers.graders.grade import grade
from trainers.graders.result import GradeResult, Sample, Usage
from trainers.metrics.graded import GraderMetric
from trainers.metrics.judge import requests
from trainers.metrics.judge.requests import JudgeFailed
from trainers.metrics.metric import EvaluatedRow, MetricValues, ModelContext
from trainers.runtime import run_dir as files
from trainers.runtime.errors import ConfigInvalid, DatasetInvalid
from trainers.runtime.events import EventWriter

MODEL = {"endpoint": "grader", "model": "g"}
SCORE = {
    "type": "score_model",
    "name": "my_score_model",
    "model": MODEL,
    "input": [
        {"role": "developer", "content": "You are an expert grader."},
        {"role": "user", "content": "Reference: {{ item.ref }}. Model answer: {{ sample.output_text }}"},
    ],
    "range": [0, 5],
    "sampling_params": {"max_completions_tokens": 32768, "top_p": 1, "reasoning_effort": "medium"},
}
LABEL = {
    "type": "label_model",
    "name": "my_label_model",
    "model": "grader/g",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "Classify {{sample.output_text}}"}]}
    ],
    "labels": ["good", "bad"],
    "passing_labels": ["good"],
}
SIMILAR = {"type": "text_similarity", "input": "{{sample.output_text}}", "reference": "{{item.ref}}"}
CHECK = {
    "type": "string_check",
    "input": "{{sample.output_text}}",
    "reference": "{{item.ref}}",
    "operation": "eq",
}


def result(value: Any) -> tuple[int, Any]:
    return 200, json.dumps(
        {"steps": [{"description": "I read it", "conclusion": "it is fine"}], "result": value}
    )


def count_letters(body: dict[str, Any]) -> tuple[int, Any]:
    """Give the number of letters of the model's answer as the score."""
    return result(len(body["messages"][-1]["content"].rpartition("answer: ")[2]))


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    monkeypatch.setattr(requests, "RETRY_SECONDS", 0.0)
    with serve_judge(count_letters) as server:
        monkeypatch.setenv("TUNESMITH_ENDPOINT_GRADER_URL", server.url)
        monkeypatch.setenv("TUNESMITH_ENDPOINT_GRADER_API_KEY", "sk-canary-grader")
        yield server


def run(config: dict[str, Any], text: str = "abc", **item: Any) -> GradeResult:
    return grade(GRADER.validate_python(config), {"ref": "r", **item}, Sample(text))


def test_a_score_is_what_the_model_gives_with_its_steps_and_tokens(model: JudgeServer) -> None:
    graded = run(SCORE)
    assert graded.score == 3 and graded.passed is False and graded.errors.names == []
    assert graded.reason == "I read it → it is fine"
    assert graded.usage == {"judge-2026-01": Usage(10, 2)}
    [body] = model.bodies
    assert body["messages"][1] == {"role": "user", "content": "Reference: r. Model answer: abc"}
    system = body["messages"][0]
    assert system["role"] == "system" and system["content"].startswith("You are an expert grader.")
    assert "a number from 0 to 5" in system["content"]
    assert body["model"] == "g" and body["max_completion_tokens"] == 32768
    assert body["reasoning_effort"] == "medium" and body["top_p"] == 1 and "temperature" not in body
    schema = body["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["result"] == {"type": "number"} and schema["required"] == ["steps", "result"]


def test_a_score_is_limited_to_the_range(model: JudgeServer) -> None:
    assert run(SCORE, "abcdefgh").score == 5 and run(SCORE, "abcdefgh").passed is True
    model.respond = lambda _: result(-7.5)
    assert run(SCORE).score == 0
    assert run(SCORE | {"pass_threshold": 0}).passed is True


def test_a_label_passes_if_it_is_a_passing_one(model: JudgeServer) -> None:
    model.respond = lambda body: result("good" if "abc" in body["messages"][-1]["content"] else "bad")
    good, bad = run(LABEL), run(LABEL, "xyz")
    assert (good.score, good.label, good.passed) == (1, "good", True)
    assert (bad.score, bad.label, bad.passed) == (0, "bad", False)
    body = model.bodies[0]
    assert body["messages"][0]["role"] == "system" and '["good", "bad"]' in body["messages"][0]["content"]
    assert body["response_format"]["json_schema"]["schema"]["properties"]["result"]["enum"] == ["good", "bad"]


@pytest.mark.parametrize(
    ("answer", "error", "reason"),
    [
        ((200, "3"), "model_grader_parse_error", "not an object with a `result`"),
        ((200, "The score is 3."), "model_grader_parse_error", "is not JSON"),
        (result("3"), "model_grader_parse_error", "which is not a number"),
        (result(True), "model_grader_parse_error", "which is not a number"),
        ((200, '{"result": NaN}'), "model_grader_parse_error", "NaN is not JSON"),
        ((200, completion(None, message={"refusal": "No."})), "model_grader_refusal_error", "refused: No."),
        ((400, {"error": "context"}), "model_grader_server_error", "status 400"),
        ((500, {}), "model_grader_server_error", "status 500"),
        ((200, {"choices": []}), "model_grader_server_error", "not a chat completion"),
    ],
)
def test_an_answer_without_a_score_is_an_error_of_its_kind(
    model: JudgeServer, answer: tuple[int, Any], error: str, reason: str
) -> None:
    model.respond = lambda _: answer
    graded = run(SCORE)
    assert graded.score is None and error in graded.errors.names and reason in graded.reason
    if error == "model_grader_server_error":
        assert reason in str(graded.errors.model_grader_server_error_details)


def test_an_answer_that_its_limit_cuts_off_is_reported_as_truncated(model: JudgeServer) -> None:
    model.respond = lambda _: (200, completion('{"steps": [', finish_reason="length"))
    assert run(SCORE).errors.names == ["model_grader_parse_error", "truncated_observation_error"]


def test_an_endpoint_that_does_not_know_response_format_is_asked_without_it(model: JudgeServer) -> None:
    def reject(body: dict[str, Any]) -> tuple[int, Any]:
        return (
            (400, {"error": "unknown field response_format"})
            if "response_format" in body
            else count_letters(body)
        )

    model.respond = reject
    assert run(SCORE).score == 3 and len(model.bodies) == 2


def test_a_formula_of_model_graders_sums_their_tokens(model: JudgeServer) -> None:
    multi = {"type": "multi", "graders": {"a": SCORE, "b": SCORE | {"range": [0, 2]}, "c": CHECK}}
    graded = run(multi | {"calculate_output": "(a + b) / 7 + c"})
    assert graded.score == pytest.approx(5 / 7) and graded.sub_scores == {"a": 3, "b": 2, "c": 0}
    assert graded.usage == {"judge-2026-01": Usage(20, 4)}


def test_cosine_compares_the_embeddings_of_the_endpoint(model: JudgeServer) -> None:
    vectors = {"abc": [3.0, 4.0], "r": [4.0, 3.0]}

    def embed(body: dict[str, Any]) -> tuple[int, Any]:
        data = [{"index": i, "embedding": vectors[text]} for i, text in enumerate(body["input"])]
        return 200, {"data": data[::-1]}

    model.respond = embed
    config = SIMILAR | {"evaluation_metric": "cosine", "embedding_model": MODEL}
    assert run(config).score == pytest.approx(24 / 25)
    model.respond = lambda _: (200, {"data": []})
    assert run(config).errors.names == ["model_grader_server_error"]
    with pytest.raises(ValueError, match="cosine needs an `embedding_model`"):
        GRADER.validate_python(SIMILAR | {"evaluation_metric": "cosine"})


def test_a_key_or_an_address_that_is_wrong_is_no_fault_of_a_row(
    model: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.respond = lambda _: (401, {"error": "invalid key"})
    with pytest.raises(JudgeFailed, match="rejects every request"):
        run(SCORE)
    monkeypatch.delenv("TUNESMITH_ENDPOINT_GRADER_URL")
    with pytest.raises(ConfigInvalid, match="TUNESMITH_ENDPOINT_GRADER_URL is not set"):
        run(SCORE)


def test_the_program_reports_an_endpoint_that_rejects_every_request_as_its_error(
    model: JudgeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(requests, "MAX_RETRIES", 0)
    monkeypatch.setattr(sys, "argv", ["graders"])
    model.respond = lambda _: (401, {"error": "invalid key"})
    request = {"grader": SCORE, "item": {"ref": "r"}, "sample": "abc"}
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(request)))
    main()
    printed = json.loads(capsys.readouterr().out)["grade"]
    assert printed["score"] is None and printed["errors"]["model_grader_server_error"] is True
    unknown = request | {"grader": SCORE | {"model": "elsewhere/g"}}
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(unknown)))
    main()
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "config_invalid"


def rows(*responses: str | None) -> list[EvaluatedRow]:
    prompt = [{"role": "user", "content": "?"}]
    return [EvaluatedRow(n, prompt, "", (one,), {"ref": "abc"}) for n, one in enumerate(responses, start=1)]


def score(
    config: dict[str, Any], graded: list[EvaluatedRow], folder: Path | None = None, **options: Any
) -> MetricValues:
    metric = GraderMetric(GraderScore.model_validate({"metric": "grader", "grader": config, **options}))
    return metric.score_model(graded, ModelContext("model", folder))


def test_the_metric_is_the_mean_score_or_the_share_that_passes() -> None:
    fuzzy = SIMILAR | {"evaluation_metric": "fuzzy_match", "pass_threshold": 0.6}
    values = score(fuzzy, rows("abc", "abd", "xyz", None))
    assert values.row_values == [1, pytest.approx(2 / 3), 0, 0] and not values.is_share
    assert values.value == pytest.approx(5 / 12)
    passed = score(fuzzy, rows("abc", "abd", "xyz", None), report="passed")
    assert passed.row_values == [1, 1, 0, 0] and passed.is_share and "threshold:0.6" in passed.signature
    assert [row["passed"] for row in passed.row_details] == [True, True, False, False]
    assert passed.details["passed"] == 2 and passed.details["failed"] == 2


def test_a_completion_without_json_has_the_lowest_score_and_not_none() -> None:
    config = CHECK | {"input": "{{sample.output_json.a}}"}
    values = score(config, rows('{"a": "abc"}', "abc"), max_error_share=0)
    assert values.row_values == [1, 0]
    assert values.row_details[1]["errors"] == ["sample_parse_error"]
    assert values.details["error_kinds"] == {"sample_parse_error": 1}


def test_a_row_whose_field_is_missing_is_refused_before_anything_is_generated() -> None:
    metric = GraderMetric(GraderScore.model_validate({"metric": "grader", "grader": SCORE}))
    row = EvaluatedRow(1, [], "", (), {"other": 1})
    assert "there is no `item.ref`" in str(metric.check_row(row))


def test_rows_without_a_score_have_no_value_up_to_a_share(model: JudgeServer) -> None:
    model.respond = lambda body: (200, "?") if len(model.bodies) == 1 else count_letters(body)
    values = score(SCORE, rows("a", "ab", "abc"), max_error_share=0.4, concurrency=1)
    assert values.row_values == [None, 2, 3] and values.value == 2.5
    assert values.row_details[0]["passed"] is None and "is not JSON" in values.row_details[0]["reason"]
    model.respond = lambda _: (200, "?")
    with pytest.raises(JudgeFailed, match=r"2 rows have no score.*so far, of 9.*is not JSON"):
        score(SCORE, rows(*"abcdefghi"), max_error_share=0.2, concurrency=1)
    assert len(model.bodies) < 3 + 9


def test_all_rows_may_lack_a_score_where_the_share_is_one(model: JudgeServer) -> None:
    model.respond = lambda _: (200, "?")
    values = score(SCORE, rows("a", "ab"), max_error_share=1)
    assert (values.row_values, values.details["errors"], values.value) == ([None, None], 2, 0)
    found = make_score("grader", values, n_failed=0)
    assert (found.n, found.interval_95) == (0, None)
    with pytest.raises(JudgeFailed):
        score(SCORE, rows("a", "ab"), max_error_share=0.99)


def test_an_evaluation_grades_stored_responses_and_resumes(model: JudgeServer, tmp_path: Path) -> None:
    dataset = tmp_path / "data.jsonl"
    lines = [{"prompt": "q", "completion": "r", "ref": "x", "new": "x" * n} for n in range(1, 5)]
    dataset.write_text("".join(json.dumps(line) + "\n" for line in lines))
    metrics = [
        {"metric": "grader", "name": "letters", "grader": SCORE},
        {"metric": "grader", "name": "equal", "grader": CHECK, "report": "passed"},
    ]
    config = parse_stage(
        {"stage": "evaluate", "dataset": str(dataset), "model": {"field": "new"}, "metrics": metrics}
    )
    assert isinstance(config, EvaluateConfig)
    for _ in range(2):
        with EventWriter(tmp_path / files.EVENTS) as writer:
            evaluated = EvaluationResult.model_validate(evaluate.run(config, tmp_path, writer))
        assert [(one.metric, one.value) for one in evaluated.models[0].scores] == [
            ("letters", 2.5),
            ("equal", 0.25),
        ]
    assert len(model.bodies) == 4
    row = files.read_lines(tmp_path / "rows.jsonl")[0]["models"]["model"]
    assert row["values"] == {"letters": 1, "equal": 1}
    assert row["details"]["equal"] == {"passed": True}
    assert row["details"]["letters"] == {"passed": False, "reason": "I read it → it is fine"}
    assert "sk-canary-grader" not in "".join(path.read_text() for path in tmp_path.glob("*.json*"))
    missing = metrics[0] | {"grader": SCORE | {"input": [{"role": "user", "content": "{{item.gone}}"}]}}
    with pytest.raises(DatasetInvalid, match=r"Row 1 .* there is no `item.gone`"):
        evaluate.plan(config.model_copy(update={"metrics": [GraderScore.model_validate(missing)]}))
