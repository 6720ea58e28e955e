"""Goal: a metric that cannot be computed is refused at POST, and no job reaches an address that it chose."""

import json
from typing import Any

import pytest
from pydantic import SecretStr
from sqlmodel import select
from starlette.testclient import TestClient

from app.settings import EvaluationEndpoint, get_settings
from app.storage.database import read_session
from app.tables import Run

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
KEY = "canary-judge-0123456789"
ROWS = [{"prompt": f"{n}?", "completion": f"#### {n}", "answered": f"{n}"} for n in range(5)]
JUDGE = {"metric": "judge_score", "rubric": "Be right.", "judge": {"endpoint": "judge", "model": "gpt"}}
CHECK = {"type": "string_check", "input": "{{sample.output_text}}", "reference": "{{item.answered}}"}
GRADER = {"metric": "grader", "grader": CHECK | {"operation": "eq"}}
PYTHON = {"metric": "grader", "grader": {"type": "python", "source": "def grade(sample, item): return 1"}}


@pytest.fixture
def rows(client: TestClient) -> str:
    files = {"file": ("rows.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS))}
    assert client.post("/api/v1/datasets", data={"name": "rows"}, files=files).status_code == 201
    get_settings().evaluation_endpoints = {
        "judge": EvaluationEndpoint(url="https://judge.example/v1", api_key=SecretStr(KEY))
    }
    return "rows"


def post(client: TestClient, *metrics: Any, **values: Any) -> tuple[int, str]:
    stage = {"stage": "evaluate", "model": {"field": "answered"}, "dataset": "rows", "metrics": list(metrics)}
    response = client.post("/api/v1/jobs", json={"name": "job", "stages": [stage | values]})
    return response.status_code, response.text


@pytest.mark.parametrize("values", [{"clusters": "absent"}, {"slices": ["answered", "absent"]}])
def test_a_field_that_no_row_has_is_refused(client: TestClient, rows: str, values: dict[str, Any]) -> None:
    status, text = post(client, "f1", **values)
    assert status == 422 and "has a field 'absent'" in text.replace("has no field", "has a field")
    assert post(client, "f1", slices=["answered"], clusters="answered")[0] == 201


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        ({"metric": "regular_expression", "pattern": "(?=x)"}, "look-around"),
        ({"metric": "regular_expression", "pattern": r"(\w{1,100}){1,100}"}, "cannot be used"),
        ({"metric": "regular_expression", "pattern_field": "absent"}, "must contain a pattern"),
        ({"metric": "json_schema", "json_schema": {"type": "strin"}}, "the schema is not valid"),
        ({"metric": "json_schema", "json_schema": {"$ref": "http://10.0.0.1/"}}, "the schema refers to"),
        ("tool_calls", "neither `tools` nor a tool call"),
        (JUDGE | {"lowest": 5}, "must be below highest"),
        (
            JUDGE | {"judge": {"endpoint": "absent", "model": "gpt"}},
            "There is no endpoint 'absent'; there are: judge",
        ),
        (JUDGE | {"judge": {"deployment": "absent"}}, "There is no live deployment 'absent'"),
        (JUDGE | {"judge": {"url": "http://10.0.0.1", "model": "gpt"}}, "url"),
        (JUDGE | {"judge": {"endpoint": "judge", "model": "gpt", "api_key": "x"}}, "api_key"),
        (JUDGE | {"metric": "judge_preference", "against": "absent"}, "there are: reference"),
        (GRADER | {"grader": CHECK | {"operation": "is"}}, "'eq', 'ne', 'like' or 'ilike'"),
        (
            GRADER | {"grader": CHECK | {"operation": "eq", "reference": "{{item.absent}}"}},
            "lacks a field of the grader",
        ),
        (PYTHON, "Python graders are off"),
    ],
)
def test_a_metric_that_cannot_be_computed_is_refused(
    client: TestClient, rows: str, metric: Any, reason: str
) -> None:
    status, text = post(client, metric)
    assert status == 422 and reason in text


def test_a_grader_in_python_waits_for_a_worker_with_a_sandbox(client: TestClient, rows: str) -> None:
    assert post(client, GRADER)[0] == 201
    get_settings().python_graders = True
    assert post(client, PYTHON)[0] == 201
    with read_session() as session:
        assert set(session.exec(select(Run.capability))) == {None, "python_grader"}


def test_stored_responses_are_scored_without_a_model(client: TestClient, rows: str) -> None:
    assert post(client, "exact_match")[0] == 201
    status, text = post(client, "exact_match", model={"field": "absent"})
    assert status == 422 and "it has no field `absent`" in text


def test_a_job_and_what_is_shown_of_it_contain_neither_key_nor_address(client: TestClient, rows: str) -> None:
    status, text = post(client, JUDGE)
    assert status == 201
    shown = (
        text + client.get(f"/api/v1/jobs/{json.loads(text)['id']}").text + client.get("/api/v1/settings").text
    )
    assert "judge.example" not in shown and KEY not in shown
