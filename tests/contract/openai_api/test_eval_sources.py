"""Stored answers as the items of eval runs, and how their models generate, through OpenAI's client."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from openai import BadRequestError, OpenAI
from sqlalchemy import select
from sqlmodel import col
from starlette.testclient import TestClient

from app.storage.database import read_session
from app.tables import EvalRun, Run, Scope
from tests.contract.openai_api.talking_engine import TalkingEngine
from tests.contract.openai_api.test_evals import CRITERIA, content, worker
from tests.integration.workers.conftest import execute_next
from workers.hosts.worker import WorkerContext

__all__ = ["worker"]

ECHO: Any = {**CRITERIA[0], "input": "{{ sample.output_text }}", "reference": "{{ item.metadata.expected }}"}
ITEM = {"a": "b", "metadata": {"expected": "b"}}
SCHEMA: Any = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
FUNCTION: Any = {"name": "look_up", "description": "Look up.", "parameters": {"type": "object"}}
TEMPLATE: Any = {"type": "template", "template": [{"role": "user", "content": "{{ item.a }}"}]}

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def define(openai: OpenAI, **config: Any) -> str:
    logs: Any = {"type": "logs", **config}
    return openai.evals.create(name="logs", data_source_config=logs, testing_criteria=[ECHO]).id


def start(openai: OpenAI, eval_id: str, kind: str = "completions", **fields: Any) -> Any:
    source: Any = {"type": kind, **fields}
    return openai.evals.runs.create(eval_id, data_source=source)


def read_stage(run: Any) -> dict[str, Any]:
    """Return the config of the stage that carries out a run."""
    with read_session() as session:
        job_id = session.scalars(select(col(EvalRun.job_id)).where(col(EvalRun.id) == run.id)).one()
        return session.scalars(select(Run).where(col(Run.job_id) == job_id)).one().config


def read_items(client: TestClient, run: Any, headers: Any = None) -> list[Any]:
    rows = client.get(f"/api/v1/datasets/{read_stage(run)['dataset']}/rows", headers=headers).json()["items"]
    return [row["row"] for row in rows]


def say(openai: OpenAI, text: str, **metadata: str) -> None:
    message: Any = {"role": "user", "content": text}
    openai.chat.completions.create(model="talk", messages=[message], store=True, metadata=metadata)


def test_stored_completions_become_items_by_the_filters_of_eval_and_run(
    openai: OpenAI, client: TestClient, engine: TalkingEngine, key_of: Callable[..., OpenAI]
) -> None:
    mine, other = (key_of(Scope.inference, Scope.read, Scope.write) for _ in range(2))
    for text in ("one", "two", "three"):
        say(mine, text, usecase="bot", expected=text)
    say(mine, "four", usecase="search")
    say(other, "five", usecase="bot")
    eval_id = define(mine, metadata={"usecase": "bot"})
    config: Any = mine.evals.retrieve(eval_id).data_source_config
    assert (config.type, config.metadata) == ("logs", {"usecase": "bot"})
    assert config.schema_["required"] == ["item", "sample"]

    def find(**filters: Any) -> list[str]:
        source = {"type": "stored_completions", **filters}
        run = start(mine, eval_id, source=source)
        headers = {"Authorization": f"Bearer {mine.api_key}"}
        return [row["sample"] for row in read_items(client, run, headers)]

    assert find() == ["three", "two", "one"]
    assert find(limit=2) == ["three", "two"]
    assert find(metadata={"expected": "one"}, model="talk", created_after=int(time.time()) - 60) == ["one"]
    for nothing in (
        {"model": "cut-talk"},
        {"metadata": {"usecase": "search"}},
        {"created_after": int(time.time()) + 60},
        {"created_before": int(time.time()) - 60},
    ):
        with pytest.raises(BadRequestError, match="no items") as caught:
            find(**nothing)
        assert caught.value.param == "data_source.source"


def test_a_model_responds_to_the_messages_of_stored_responses(
    openai: OpenAI, engine: TalkingEngine, worker: WorkerContext
) -> None:
    first = openai.responses.create(model="talk", input="one", instructions="Be brief.")
    openai.responses.create(
        model="talk",
        input="two",
        previous_response_id=first.id,
        metadata={"expected": "two"},
        temperature=0.5,
    )
    eval_id = define(openai)
    run = start(
        openai,
        eval_id,
        "responses",
        source={"type": "responses", "metadata": {"expected": "two"}},
        model="talk",
        sampling_params={
            "tools": [{"type": "function", **FUNCTION, "strict": True}],
            "text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA, "strict": True}},
            "max_completion_tokens": 9,
            "top_p": 0.9,
            "seed": 7,
        },
    )
    assert execute_next(worker)
    run = openai.evals.runs.retrieve(run.id, eval_id=eval_id)
    assert (run.status, run.result_counts.passed) == ("completed", 1)
    body = engine.bodies[-1]
    assert [message["content"] for message in body["messages"]] == ["one", "one", "two"]
    assert body["tools"] == [{"type": "function", "function": {**FUNCTION, "strict": True}}]
    schema = {"name": "a", "schema": SCHEMA, "strict": True}
    assert body["response_format"] == {"type": "json_schema", "json_schema": schema}
    assert (body["max_tokens"], body["top_p"], body["temperature"]) == (9, 0.9, 1.0)
    [item] = openai.evals.runs.output_items.list(run.id, eval_id=eval_id)
    assert (item.sample.output[0].content, item.sample.seed) == ("two", 7)


def test_a_chat_has_tools_and_a_form_and_a_stored_answer_its_calls(
    openai: OpenAI, client: TestClient, engine: TalkingEngine
) -> None:
    sampling: Any = {
        "tools": [{"type": "function", "function": FUNCTION}],
        "response_format": {"type": "json_object"},
        "temperature": 0,
    }
    rows: Any = content([{"item": ITEM}])
    run = start(
        openai, define(openai), source=rows, model="talk", input_messages=TEMPLATE, sampling_params=sampling
    )
    stage = read_stage(run)
    assert {name: stage[name] for name in sampling} == sampling
    call = {"id": "c", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
    answers: Any = [
        {"item": ITEM, "sample": {"choices": [{"message": {"content": None, "tool_calls": [call]}}]}},
        {"item": ITEM, "sample": {"output_text": "a"}},
    ]
    for kind in ("completions", "responses"):
        run = start(openai, define(openai), kind, source=content(answers))
        found = [(row["sample"], row.get("sample_tool_calls")) for row in read_items(client, run)]
        assert found == [("", [call]), ("a", None)]


REFUSALS: list[tuple[str, dict[str, Any], str, str]] = [
    ("jsonl", {"source": content([{"item": {}}])}, "data_source.source", "no `item.metadata`"),
    ("completions", {"model": "talk"}, "data_source", "`input_messages` is required"),
    ("completions", {"input_messages": TEMPLATE}, "data_source", "`model` is required"),
    ("completions", {"source": {"type": "responses"}}, "data_source.source", "stored_completions"),
    ("jsonl", {"source": {"type": "stored_completions"}}, "data_source.source", "file_content"),
    (
        "completions",
        {"sampling_params": {"tools": [{"type": "web_search"}]}},
        "data_source.sampling_params.tools.0",
        "'web_search' is not offered",
    ),
    (
        "responses",
        {"sampling_params": {"tools": [{"type": "file_search", "vector_store_ids": []}]}},
        "data_source.sampling_params.tools.0",
        "'file_search' is not offered",
    ),
    (
        "responses",
        {"sampling_params": {"response_format": {"type": "text"}}},
        "data_source.sampling_params.response_format",
        "no such field",
    ),
    (
        "responses",
        {"sampling_params": {"text": {"format": {"type": "grammar"}}}},
        "data_source.sampling_params.text.format",
        "'grammar' is unknown",
    ),
    (
        "completions",
        {"sampling_params": {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}},
        "data_source.sampling_params.response_format",
        "has a `schema`",
    ),
    (
        "completions",
        {"model": "talk", "input_messages": TEMPLATE, "sampling_params": {"reasoning_effort": "low"}},
        "data_source.sampling_params.reasoning_effort",
        "hf",
    ),
    (
        "completions",
        {
            "model": "talk",
            "input_messages": {
                "type": "template",
                "template": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}],
            },
        },
        "data_source.input_messages.template.0.content",
        "images and audio are not offered",
    ),
]


def test_what_a_run_cannot_have_is_refused_by_name(openai: OpenAI, engine: TalkingEngine) -> None:
    eval_id = define(openai)
    for kind, fields, param, message in REFUSALS:
        with pytest.raises(BadRequestError) as caught:
            start(openai, eval_id, kind, **{"source": content([{"item": ITEM}]), **fields})
        error = json.dumps(caught.value.body)
        assert str(caught.value.param).startswith(param) and message in error, (kind, fields, error)
