"""OpenAI's graders, through its official client: each response is what the client's types say."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from openai import BadRequestError, InternalServerError, OpenAI
from openai.types.fine_tuning.alpha import GraderRunResponse
from openai.types.graders import (
    LabelModelGrader,
    PythonGrader,
    ScoreModelGrader,
    StringCheckGrader,
    TextSimilarityGrader,
)
from pydantic import TypeAdapter
from rapidfuzz import fuzz, utils
from sqlmodel import select

from app.graders import run
from app.settings import EvaluationEndpoint, Settings
from app.storage.database import read_session, transaction
from app.tables import Deployment, Run
from tests.integration.trainers.metrics.judge_server import JudgeServer, serve_judge
from tests.services import REQUIRED
from trainers.configs import EngineKind, Queue
from trainers.graders.sandbox import find_sandbox_fault

needs_sandbox = pytest.mark.skipif(
    (fault := find_sandbox_fault()) is not None and not REQUIRED, reason=str(fault)
)
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

CHECK: Any = {
    "type": "string_check",
    "name": "exact",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "operation": "eq",
}
FUZZY: Any = {
    "type": "text_similarity",
    "name": "similar",
    "input": "{{sample.output_json.name}}",
    "reference": "{{item.name}}",
    "evaluation_metric": "fuzzy_match",
}
SCORE: Any = {
    "type": "score_model",
    "name": "judge",
    "model": "gpt-4o-2024-08-06",
    "input": [
        {"role": "user", "content": "Reference: {{item.answer}}. Model answer: {{sample.output_text}}"}
    ],
    "range": [0, 10],
    "sampling_params": {"temperature": 0, "max_completions_tokens": 100},
}
LABEL: Any = {
    "type": "label_model",
    "name": "label",
    "model": "gpt-4o-2024-08-06",
    "input": [{"role": "user", "content": "{{sample.output_text}}"}],
    "labels": ["good", "bad"],
    "passing_labels": ["good"],
}
PYTHON: Any = {"type": "python", "name": "code", "source": "def grade(sample, item):\n    return 0.25"}
MULTI: Any = {
    "type": "multi",
    "name": "both",
    "graders": {"name": FUZZY, "answer": CHECK | {"input": "{{sample.output_json.answer}}"}},
    "calculate_output": "(name + answer) / 2",
}


def grade(openai: OpenAI, grader: Any, sample: str, **item: Any) -> GraderRunResponse:
    response = openai.fine_tuning.alpha.graders.run(grader=grader, model_sample=sample, item=item)
    # The client itself does not check the types of a response.
    return GraderRunResponse.model_validate(response.to_dict(), strict=True)


def errors(response: GraderRunResponse) -> list[str]:
    return [name for name, value in response.metadata.errors.to_dict().items() if value is True]


@pytest.fixture
def judge(settings: Settings) -> Iterator[JudgeServer]:
    answer = json.dumps({"steps": [], "result": 7.5})
    with serve_judge(lambda _: (200, answer)) as server:
        settings.evaluation_endpoints = {"openai": EvaluationEndpoint(url=server.url)}
        settings.grader_models = {"gpt-4o-2024-08-06": "openai/gpt-4o"}
        yield server


def test_a_formula_is_run_with_its_parts(openai: OpenAI) -> None:
    sample = json.dumps({"name": "Jon Doe", "answer": "4"})
    response = grade(openai, MULTI, sample, name="John Doe", answer="4")
    name = fuzz.WRatio("Jon Doe", "John Doe", processor=utils.default_process) / 100
    assert response.reward == pytest.approx((name + 1) / 2)
    assert response.sub_rewards == response.metadata.scores == {"name": name, "answer": 1.0}
    assert (response.metadata.name, response.metadata.type) == ("both", "multi")
    assert errors(response) == [] and response.metadata.execution_time >= 0
    missing = grade(openai, MULTI, sample, name="John Doe")
    assert missing.reward == 0 and errors(missing) == ["invalid_variable_error"]
    assert "there is no `item.answer`" in missing.metadata.to_dict()["reason"]  # type: ignore[operator]


def test_a_model_of_openai_is_the_one_that_the_settings_name(openai: OpenAI, judge: JudgeServer) -> None:
    response = grade(openai, SCORE, "four", answer="4")
    assert response.reward == 7.5 and response.metadata.sampled_model_name == "judge-2026-01"
    assert response.metadata.token_usage == 12
    assert response.api_model_grader_token_usage_per_model["judge-2026-01"] == {
        "prompt_tokens": 10,
        "completion_tokens": 2,
        "total_tokens": 12,
    }
    [body] = judge.bodies
    assert body["model"] == "gpt-4o" and body["messages"][1]["content"] == "Reference: 4. Model answer: four"


@needs_sandbox
def test_code_in_python_runs_where_the_operator_allows_it(openai: OpenAI, settings: Settings) -> None:
    settings.python_graders = True
    # The first versions of the client send no row.
    source = "def grade(sample, item):\n    return len(item['reference_answer'] + sample['output_text'])"
    response = openai.fine_tuning.alpha.graders.run(
        grader=PYTHON | {"source": source}, model_sample="ab", extra_body={"reference_answer": "c"}
    )
    assert response.reward == 3


def test_a_valid_grader_is_returned_as_it_was_sent(
    openai: OpenAI, judge: JudgeServer, settings: Settings
) -> None:
    settings.python_graders = True
    kinds: dict[type | None, Any] = {
        StringCheckGrader: CHECK,
        TextSimilarityGrader: FUZZY,
        ScoreModelGrader: SCORE,
        LabelModelGrader: LABEL,
        PythonGrader: PYTHON,
    }
    # The client's type of a formula has one grader, where OpenAI's guide and its API have several by name.
    for kind, grader in {**kinds, None: MULTI}.items():
        raw = openai.fine_tuning.alpha.graders.with_raw_response.validate(grader=grader)
        returned = raw.http_response.json()["grader"]
        assert returned == grader
        if kind is not None:
            assert TypeAdapter(kind).validate_python(returned).to_dict() == grader


REFUSED: list[tuple[Any, str, str]] = [
    ({"type": "endpoint"}, "grader.type", "Input should be one of"),
    (CHECK | {"operation": "contains"}, "grader.operation", "'eq', 'ne', 'like' or 'ilike'"),
    (CHECK | {"reference": "{{ system.prompt }}"}, "grader.reference", "unknown namespace"),
    (CHECK | {"threshold": 1}, "grader.threshold", "no such field"),
    (FUZZY | {"evaluation_metric": "cosine"}, "grader", "cosine needs an `embedding_model`"),
    (SCORE | {"model": "gpt-5"}, "grader.model", "no live deployment 'gpt-5'"),
    (SCORE | {"model": "other/x"}, "grader.model", "no endpoint 'other'"),
    (SCORE | {"model": "GPT 5"}, "grader.model", "neither the name of a deployment nor"),
    (SCORE | {"range": [1, 1]}, "grader", "must be below the second"),
    (LABEL | {"passing_labels": ["fine"]}, "grader", "'fine' is not one of `labels`"),
    (MULTI | {"calculate_output": "__import__('os')"}, "grader", "the formula contains"),
    (MULTI | {"calculate_output": "name + x"}, "grader", "names 'x', which is not a grader"),
    (MULTI | {"graders": {"a": MULTI}}, "grader.graders.a.type", "Input should be one of"),
    (PYTHON, "grader", "Python graders are off"),
    (MULTI | {"graders": {"a": PYTHON}, "calculate_output": "a"}, "grader", "Python graders are off"),
    (PYTHON | {"source": "x = 1"}, "grader.source", "defines no function `grade(sample, item)`"),
]


def test_a_grader_that_cannot_be_used_is_refused_with_the_field(openai: OpenAI) -> None:
    graders = openai.fine_tuning.alpha.graders
    for grader, param, message in REFUSED:
        with pytest.raises(BadRequestError) as caught:
            graders.validate(grader=grader)
        assert message in caught.value.message and caught.value.param == param
    with pytest.raises(BadRequestError, match="unknown namespace"):
        graders.run(grader=REFUSED[2][0], model_sample="x")


def test_an_eval_and_its_run_name_the_models_of_openai(openai: OpenAI, judge: JudgeServer) -> None:
    schema: Any = {"type": "custom", "item_schema": {"type": "object"}, "include_sample_schema": True}
    created = openai.evals.create(data_source_config=schema, testing_criteria=[SCORE])
    rows: Any = [{"item": {"answer": "4"}, "sample": {"output_text": "four"}}]
    source: Any = {"type": "jsonl", "source": {"type": "file_content", "content": rows}}
    openai.evals.runs.create(created.id, data_source=source)
    with read_session() as session:
        [run] = session.exec(select(Run))
    assert run.config["metrics"][0]["grader"]["model"] == {"endpoint": "openai", "model": "gpt-4o"}
    shown: Any = openai.evals.retrieve(created.id).testing_criteria[0]
    assert shown.model == "gpt-4o-2024-08-06"
    with pytest.raises(BadRequestError, match="Python graders are off"):
        openai.evals.create(data_source_config=schema, testing_criteria=[PYTHON])


def test_as_many_graders_run_as_may(openai: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = [run._places.acquire(blocking=False) for _ in range(run.MAX_GRADINGS)]
    try:
        with pytest.raises(InternalServerError, match="4 graders are running") as caught:
            grade(openai, CHECK, "x", answer="x")
        assert caught.value.status_code == 503 and caught.value.response.headers["Retry-After"] == "1"
    finally:
        for _ in taken:
            run._places.release()


def test_a_grader_that_takes_too_long_is_stopped(openai: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "MAX_GRADING_SECONDS", 0.01)
    with pytest.raises(BadRequestError, match="did not end within") as caught:
        grade(openai, CHECK, "x", answer="x")
    assert caught.value.code == "time_limit"


def test_a_deployment_that_is_not_ready_cannot_grade(openai: OpenAI, settings: Settings) -> None:
    with transaction() as session:
        session.add(
            Deployment(name="judge", base="/m", engine=EngineKind.hf, queue=Queue.cpu, engine_key="k")
        )
    with pytest.raises(BadRequestError, match="'judge' is not ready") as caught:
        grade(openai, SCORE | {"model": "judge"}, "x", answer="x")
    assert caught.value.code == "capability_missing"
