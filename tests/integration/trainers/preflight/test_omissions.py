"""Goal: what the model's template leaves out of a file is a finding with count, line and field."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.trainers.preflight.test_findings import CLEAN, chat, run_preflight, with_template
from trainers.configs.stages.prepare import PrepareConfig
from trainers.prepare import run as prepare
from trainers.runtime.events import EventWriter

Rows = list[dict[str, Any]]
Write = Callable[[Rows], str]

CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"city": "Paris"}'}}
TOOL = {"type": "function", "function": {"name": "f", "description": "Find.", "parameters": {}}}


def changed(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Rows:
    """Return clean conversations, of which the first is changed."""
    rows = [chat(("user", row["question"]), ("assistant", row["answer"])) for row in CLEAN]
    return [change(rows[0]), *rows[1:]]


def with_answer(fields: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda row: {"messages": [row["messages"][0], row["messages"][1] | fields]}


@pytest.mark.parametrize(
    ("rows", "code", "level", "field"),
    [
        (
            changed(with_answer({"content": None, "tool_calls": [CALL]})),
            "completion_not_rendered",
            "error",
            "messages[].tool_calls[]",
        ),
        (
            changed(with_answer({"tool_calls": [CALL]})),
            "tool_calls_not_rendered",
            "warning",
            "messages[].tool_calls[]",
        ),
        (
            changed(with_answer({"reasoning_content": "One and one."})),
            "reasoning_not_rendered",
            "warning",
            "messages[].reasoning_content",
        ),
        (changed(lambda row: row | {"tools": [TOOL]}), "tools_not_rendered", "warning", "tools[]"),
        (changed(lambda row: row | {"context": "Berlin"}), "fields_not_read", "warning", "context"),
        (
            changed(lambda row: row | {"note": "This row was written by a careful person in a hurry."}),
            "other_fields_not_read",
            "info",
            "note",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_template_leaves_out_is_found(
    starter: Path, tmp_path: Path, write_rows: Write, rows: Rows, code: str, level: str, field: str
) -> None:
    result = run_preflight(starter, tmp_path, write_rows(rows))
    (found,) = result["findings"]
    assert (found["code"], found["level"], found["count"]) == (code, level, 1)
    assert "In 1 of 40 rows" in found["message"]
    assert f"`{field}` (1)" in found["message"]
    assert found["examples"][0]["line"] == 1
    assert result["passed"] is (level != "error")


def test_a_system_field_is_part_of_every_rendered_row(
    starter: Path, tmp_path: Path, write_rows: Write
) -> None:
    rows = [{"prompt": row["question"], "completion": row["answer"], "system": "Count."} for row in CLEAN]
    result = run_preflight(starter, tmp_path, write_rows(rows))
    assert result["findings"] == []
    assert "Count." in result["rows"][0]["text"]


@pytest.mark.parametrize(
    ("old", "new", "code", "level"),
    [
        ("message['content'] +", "message['content'] | trim +", "template_changes_rows", "info"),
        ("in messages", "in messages if message['role'] != 'system'", "text_not_rendered", "warning"),
    ],
)
def test_what_a_template_changes_is_one_line_of_information(
    starter: Path, tmp_path: Path, write_rows: Write, old: str, new: str, code: str, level: str
) -> None:
    base = with_template(starter, tmp_path, lambda template: template.replace(old, new))
    rows = [
        chat(("system", "Count. "), ("user", row["question"] + " "), ("assistant", row["answer"]))
        for row in CLEAN
    ]
    (found,) = run_preflight(base, tmp_path, write_rows(rows))["findings"]
    assert (found["code"], found["level"], found["count"]) == (code, level, 40)


def test_pairs_and_prompts_are_checked_too(starter: Path, tmp_path: Path, write_rows: Write) -> None:
    pairs = [
        {"prompt": row["question"], "chosen": row["answer"], "rejected": "#### 0", "context": f"Row {n}"}
        for n, row in enumerate(CLEAN)
    ]
    (found,) = run_preflight(starter, tmp_path, write_rows(pairs), stage="dpo")["findings"]
    assert (found["code"], found["count"]) == ("fields_not_read", 40)
    grpo = {"stage": "grpo", "rewards": [{"kind": "chrf"}], "max_completion_length": 24}
    rows = [row | {"context": "Berlin"} for row in CLEAN]
    (found,) = run_preflight(starter, tmp_path, write_rows(rows), **grpo)["findings"]
    assert (found["code"], found["count"]) == ("fields_not_read", 40)


def test_the_preview_shows_what_the_template_leaves_out(
    starter: Path, tmp_path: Path, write_rows: Write
) -> None:
    dataset = write_rows(changed(with_answer({"content": None, "tool_calls": [CALL]})))
    config = PrepareConfig.model_validate({"base": str(starter), "dataset": dataset, "rows": 2})
    result = prepare(config, tmp_path, EventWriter(None))
    assert [found["code"] for found in result["findings"]] == ["completion_not_rendered"]


def test_the_preview_shows_both_sides_of_a_pair(starter: Path, tmp_path: Path, write_rows: Write) -> None:
    row = {"system": "Count.", "prompt": "Two?", "chosen": "#### 2", "rejected": "#### 3"}
    config = PrepareConfig.model_validate({"base": str(starter), "dataset": write_rows([row])})
    shown = prepare(config, tmp_path, EventWriter(None))["rows"]
    assert [entry["side"] for entry in shown] == ["chosen", "rejected"]
    assert all("Count." in entry["text"] for entry in shown)
