"""OpenAI's Evals API, through its official client; runs are executed by a worker with the real program."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import APIStatusError, BadRequestError, NotFoundError, OpenAI
from sqlalchemy import select
from sqlmodel import col

from app.datasets import service as datasets
from app.keys import token_use
from app.settings import EvaluationEndpoint, Settings
from app.storage.database import read_session, transaction
from app.tables import ApiKey, Deployment, DeploymentStatus, Eval, Job, Scope, Webhook, WebhookDelivery
from tests.counting_engine import CountingEngine
from tests.integration.trainers.metrics.judge_server import serve_judge
from tests.integration.workers.conftest import execute_next
from trainers.configs import EngineKind, Queue
from workers.hosts.worker import WorkerContext, register_worker

SCHEMA = {
    "type": "object",
    "properties": {"question": {"type": "string"}, "answer": {"type": "string"}},
    "required": ["question", "answer"],
}
ITEMS = [{"question": f"What is {n}?", "answer": f"#### {n}"} for n in range(1, 5)]
CRITERIA: list[Any] = [
    {
        "type": "string_check",
        "name": "exact",
        "operation": "eq",
        "input": "{{ sample.output_text }}",
        "reference": "{{ item.answer }}",
    },
    {
        "type": "text_similarity",
        "name": "similar",
        "evaluation_metric": "fuzzy_match",
        "pass_threshold": 0.0,
        "input": "{{ sample.output_text }}",
        "reference": "{{ item.answer }}",
    },
]

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def engine(settings: Settings, tmp_path: Path) -> Iterator[CountingEngine]:
    """Yield an engine behind the deployment `tuned`, which answers odd numbers wrongly."""
    with CountingEngine(tmp_path / "ledger.jsonl", wrong="tuned") as engine:
        threading.Thread(target=engine.serve_forever, daemon=True).start()
        with transaction() as session:
            session.add(
                Deployment(
                    name="tuned",
                    base="base",
                    engine=EngineKind.hf,
                    queue=Queue.cpu,
                    status=DeploymentStatus.ready,
                    address=engine.url,
                    upstream_model="tuned",
                )
            )
        yield engine
        engine.shutdown()


@pytest.fixture
def worker(settings: Settings) -> Iterator[WorkerContext]:
    """Yield a worker that executes one run at a time, when a test asks it to."""
    worker = register_worker(settings, [Queue.cpu], "here")
    worker.leases.start()
    yield worker
    worker.leases.stop()


def define(openai: OpenAI, **fields: Any) -> Any:
    given: dict[str, Any] = {
        "name": "sums",
        "data_source_config": {"type": "custom", "item_schema": SCHEMA, "include_sample_schema": True},
        "testing_criteria": CRITERIA,
        "metadata": {"team": "maths"},
    }
    return openai.evals.create(**given | fields)


def content(rows: list[Any]) -> Any:
    return {"type": "file_content", "content": rows}


def ask(openai: OpenAI, eval_id: str, **fields: Any) -> Any:
    source: Any = {
        "type": "completions",
        "model": "tuned",
        "source": content([{"item": item} for item in ITEMS]),
        "input_messages": {
            "type": "template",
            "template": [{"role": "user", "content": "{{ item.question }}"}],
        },
        "sampling_params": {"temperature": 0, "max_completion_tokens": 8},
    }
    return openai.evals.runs.create(eval_id, name="run", data_source=source | fields)


def test_an_eval_is_kept_changed_and_deleted(openai: OpenAI) -> None:
    created = define(openai)
    assert (created.id[:5], created.object, created.metadata) == ("eval_", "eval", {"team": "maths"})
    assert created.data_source_config.schema_["properties"]["item"] == SCHEMA
    assert openai.evals.retrieve(created.id).to_dict() == created.to_dict()
    assert created.testing_criteria[0].name == "exact"
    changed = openai.evals.update(created.id, name="new", metadata={"a": "b"})
    assert (changed.name, changed.metadata) == ("new", {"a": "b"})
    second = define(openai)
    assert [one.id for one in openai.evals.list(limit=1)] == [created.id, second.id]
    assert [one.id for one in openai.evals.list(order="desc")] == [second.id, created.id]
    openai.evals.update(created.id, name="changed last")
    by_change: Any = {"order_by": "updated_at", "limit": 1}
    assert [one.id for one in openai.evals.list(**by_change)] == [second.id, created.id]
    assert [one.id for one in openai.evals.list(**by_change, order="desc")] == [created.id, second.id]
    assert openai.evals.delete(created.id).deleted
    with pytest.raises(NotFoundError) as caught:
        openai.evals.retrieve(created.id)
    assert caught.value.code == "eval_not_found"


def test_an_eval_with_an_older_name_that_reorders_text_can_run(
    openai: OpenAI, engine: CountingEngine
) -> None:
    created = define(openai)
    with transaction() as session:
        session.get_one(Eval, created.id).name = "sums\u202e\u2028"
    source: Any = {"type": "jsonl", "source": content([{"item": ITEMS[0], "sample": {"output_text": "4"}}])}
    assert openai.evals.runs.create(created.id, data_source=source).status == "queued"
    with read_session() as session:
        assert session.scalars(select(col(Job.name))).one().strip() == "eval: sums"


def test_a_run_grades_the_responses_of_a_deployed_model(
    openai: OpenAI, engine: CountingEngine, worker: WorkerContext
) -> None:
    created = define(openai)
    run = ask(openai, created.id)
    assert (run.status, run.model, run.result_counts.total) == ("queued", "tuned", 0)
    assert execute_next(worker)
    run = openai.evals.runs.retrieve(run.id, eval_id=created.id)
    counts = run.result_counts
    assert (run.status, counts.total, counts.passed, counts.failed, counts.errored) == (
        "completed",
        4,
        2,
        2,
        0,
    )
    results = [(one.testing_criteria, one.passed, one.failed) for one in run.per_testing_criteria_results]
    assert results == [("exact", 2, 2), ("similar", 4, 0)]
    items = list(openai.evals.runs.output_items.list(run.id, eval_id=created.id, limit=3))
    assert [item.status for item in items] == ["fail", "pass", "fail", "pass"]
    assert [item.datasource_item for item in items] == ITEMS
    first = items[0]
    assert (first.results[0].name, first.results[0].passed, first.results[0].score) == ("exact", False, 0.0)
    assert (first.sample.input[0].content, first.sample.output[0].content) == ("What is 1?", "#### 2")
    sample = first.sample
    assert (sample.finish_reason, sample.max_completion_tokens) == ("stop", 8)
    assert (sample.temperature, sample.top_p, sample.seed) == (0, 1, 42), "as it was generated"
    again = openai.evals.runs.output_items.retrieve(first.id, eval_id=created.id, run_id=run.id)
    assert again.to_dict() == first.to_dict()
    failed = openai.evals.runs.output_items.list(run.id, eval_id=created.id, status="fail", order="desc")
    assert [item.datasource_item_id for item in failed] == [2, 0]
    assert [one.to_dict() for one in openai.evals.runs.list(created.id, status="completed")] == [
        run.to_dict()
    ]
    assert openai.evals.runs.list(created.id, status="failed").data == []
    assert openai.get(run.report_url, cast_to=str).startswith("<!doctype html>")
    assert openai.evals.runs.delete(run.id, eval_id=created.id).deleted
    assert openai.evals.runs.list(created.id).data == []


def test_an_item_of_a_file_passes_fails_or_has_no_score(openai: OpenAI, worker: WorkerContext) -> None:
    exact = {**CRITERIA[0], "input": "{{ sample.output_json.sum }}"}
    # A wrong answer has the score 0, by which the formula cannot divide.
    inverse = {"type": "multi", "name": "inverse", "graders": {"a": exact}, "calculate_output": "1 / a"}
    created = define(openai, testing_criteria=[inverse])
    rows = [
        {"item": ITEMS[0], "sample": {"output_text": '{"sum": "#### 1"}'}},
        {"item": ITEMS[1], "sample": {"choices": [{"message": {"content": "no JSON"}}]}},
        {"item": ITEMS[2], "sample": {"output_text": '{"sum": "#### 1"}'}},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file = openai.files.create(file=("rows.jsonl", lines), purpose="evals")
    started = openai.evals.runs.create(
        created.id, data_source={"type": "jsonl", "source": {"type": "file_id", "id": file.id}}
    )
    assert execute_next(worker)
    run = openai.evals.runs.retrieve(started.id, eval_id=created.id)
    counts = run.result_counts
    assert (run.status, counts.passed, counts.failed, counts.errored) == ("completed", 1, 1, 1)
    items = openai.evals.runs.output_items
    assert [item.status for item in items.list(run.id, eval_id=created.id)] == ["pass", "fail", "error"]
    for status, number in (("pass", 0), ("fail", 1)):
        found: Any = items.list(run.id, eval_id=created.id, status=status)  # type: ignore[arg-type]
        assert [item.datasource_item_id for item in found] == [number]


def test_a_run_counts_its_tokens_for_its_key_and_survives_a_change_of_the_models_of_graders(
    key_of: Callable[..., OpenAI], engine: CountingEngine, worker: WorkerContext, settings: Settings
) -> None:
    openai = key_of(Scope.read, Scope.write, models=["tuned", "openai/*"])
    score: Any = {"type": "score_model", "name": "score", "model": "gpt-4.1"}
    score["input"] = [{"role": "user", "content": "{{ sample.output_text }}"}]
    with serve_judge(lambda _: (200, json.dumps({"steps": [], "result": 1}))) as judge:
        settings.evaluation_endpoints = {"openai": EvaluationEndpoint(url=judge.url)}
        settings.grader_models = {"gpt-4.1": "openai/gpt-4.1"}
        created = define(openai, testing_criteria=[score])
        run = ask(openai, created.id)
        assert execute_next(worker)
    settings.grader_models = {}
    run = openai.evals.runs.retrieve(run.id, eval_id=created.id)
    assert (run.status, run.result_counts.passed) == ("completed", 4)
    with read_session() as session:
        [key] = session.scalars(select(col(ApiKey.id)))
        # Four responses of 3 tokens and four judgements of 12.
        assert token_use.count_tokens_today(session, [key]) == {key: 4 * 3 + 4 * 12}
    assert len(openai.evals.runs.output_items.list(run.id, eval_id=created.id).data) == 4


def test_a_run_is_cancelled_and_then_its_eval_can_be_deleted(openai: OpenAI, engine: CountingEngine) -> None:
    created = define(openai)
    run = ask(openai, created.id, source=content([{"item": ITEMS[0]}] * 150))
    shown = openai.evals.runs.list(created.id).data[0].to_dict()["data_source"]["source"]  # type: ignore[index]
    assert (len(shown["content"]), shown["content_total"]) == (100, 150)
    with pytest.raises(BadRequestError, match="unfinished"):
        openai.evals.delete(created.id)
    with transaction() as session:
        session.add(
            Webhook(
                name="w",
                url="https://example.com",
                event_types=["eval.run.canceled"],
                encrypted_secret="",
                secret_hint="",
            )
        )
    assert openai.evals.runs.cancel(run.id, eval_id=created.id).status == "canceled"
    with read_session() as session:
        [delivery] = session.scalars(select(WebhookDelivery)).all()
    assert json.loads(delivery.payload)["data"] == {"id": run.id}
    assert openai.evals.runs.cancel(run.id, eval_id=created.id).status == "canceled"
    assert openai.evals.delete(created.id).deleted


def test_a_run_of_an_eval_that_is_deleted_meanwhile_is_refused(
    openai: OpenAI, engine: CountingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    created = define(openai)
    store = datasets.create_dataset

    def store_and_delete(*arguments: Any) -> Any:
        openai.evals.delete(created.id)
        return store(*arguments)

    monkeypatch.setattr(datasets, "create_dataset", store_and_delete)
    with pytest.raises(NotFoundError) as caught:
        ask(openai, created.id)
    assert caught.value.code == "eval_not_found"


Call = Callable[[OpenAI], Any]
REFUSALS: list[tuple[Call, type[APIStatusError], str | None, str]] = [
    (
        lambda o: define(o, testing_criteria=[{**CRITERIA[0], "input": "{{ row.a }}"}]),
        BadRequestError,
        "testing_criteria.0",
        "namespace",
    ),
    (lambda o: define(o, testing_criteria=[]), BadRequestError, "testing_criteria", "empty"),
    (
        lambda o: define(o, data_source_config={"type": "custom", "item_schema": {"type": 3}}),
        BadRequestError,
        "data_source_config.item_schema",
        "schema is not valid",
    ),
    (
        lambda o: define(
            o, data_source_config={"type": "custom", "item_schema": {"$ref": "file:///etc/hostname"}}
        ),
        BadRequestError,
        "data_source_config.item_schema",
        "refers to 'file:///etc/hostname'",
    ),
    (lambda o: ask(o, define(o).id, model="My Model"), BadRequestError, "data_source.model", "match"),
    (
        lambda o: ask(
            o, define(o).id, input_messages={"type": "item_reference", "item_reference": "item.a b"}
        ),
        BadRequestError,
        "data_source.input_messages.item_reference",
        "path",
    ),
    (
        lambda o: ask(
            o, define(o).id, input_messages={"type": "item_reference", "item_reference": "item.a}}x"}
        ),
        BadRequestError,
        "data_source.input_messages.item_reference",
        "path",
    ),
    (
        lambda o: o.evals.runs.create(
            define(o).id,
            name="two\nlines",
            data_source={"type": "jsonl", "source": content([{"item": ITEMS[0]}])},
        ),
        BadRequestError,
        "name",
        "control characters",
    ),
    (
        lambda o: define(o, data_source_config={"type": "spans"}),
        BadRequestError,
        "data_source_config.type",
        "custom",
    ),
    (lambda o: ask(o, "eval_none"), NotFoundError, None, "eval_none"),
    (lambda o: ask(o, define(o).id, model="none"), BadRequestError, "data_source.model", "none"),
    (
        lambda o: ask(o, define(o).id, source=content([{"item": {"question": "a"}}])),
        BadRequestError,
        "data_source.source",
        "Line 1: the item does not match the schema",
    ),
    (
        lambda o: ask(o, define(o).id, source={"type": "file_id", "id": "file-none"}),
        NotFoundError,
        "data_source.source.id",
        "file-none",
    ),
    (
        lambda o: ask(o, define(o).id, input_messages={"type": "item_reference", "item_reference": "item.x"}),
        BadRequestError,
        "data_source.source",
        "Line 1",
    ),
    (
        lambda o: o.evals.runs.output_items.retrieve("x", eval_id=define(o).id, run_id="evalrun_none"),
        NotFoundError,
        None,
        "evalrun_none",
    ),
]


def test_each_error_names_its_parameter(openai: OpenAI, engine: CountingEngine) -> None:
    for call, kind, param, message in REFUSALS:
        with pytest.raises(kind, match=message) as caught:
            call(openai)
        assert caught.value.param == param
