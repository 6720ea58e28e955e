"""Goal: what a program appends is valid for every reader. Method: write events and read them back."""

import json
import math
from pathlib import Path

from pydantic import TypeAdapter

from trainers.configs.resume_guarantee import Exactness
from trainers.runtime.events import MAX_TEXT_CHARACTERS, EventWriter, ProgramEvent


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_values_that_are_not_finite_become_null(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventWriter(path) as events:
        events.write_metrics(3, 10, {"loss": math.nan, "grad_norm": math.inf, "epoch": 0.5})
    assert lines(path)[0]["values"] == {"loss": None, "grad_norm": None, "epoch": 0.5}


def test_each_event_is_readable_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventWriter(path) as events:
        events.write_warning("rows_truncated", "Zeilen gekürzt")
        assert lines(path)[0]["message"] == "Zeilen gekürzt"


def test_progress_is_about_one_per_second_with_first_and_last(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventWriter(path, progress_seconds=60) as events:
        for step in range(101):
            events.write_progress(step, 100)
    assert [line["step"] for line in lines(path)] == [0, 100]


def test_partial_line_of_a_killed_program_is_terminated(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"type": "metr')
    with EventWriter(path) as events:
        events.write_progress(1, 2)
    partial, whole = path.read_text().splitlines()
    assert partial == '{"type": "metr'
    assert json.loads(whole)["step"] == 1


def test_every_kind_of_event_is_read_by_the_schema_that_wrote_it(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventWriter(path) as events:
        events.write_progress(1, 2)
        events.write_metrics(1, 2, {"a metric of tomorrow": 0.5})
        events.write_warning("odd", "a\0" + "b" * MAX_TEXT_CHARACTERS)
        events.write_resumed(1, Exactness.approximate, ["another device"])
    event: TypeAdapter[ProgramEvent] = TypeAdapter(ProgramEvent)
    read = [event.validate_json(line) for line in path.read_text().splitlines()]
    assert [one.type for one in read] == ["progress", "metrics", "warning", "resumed"]
    assert len(lines(path)[2]["message"]) == MAX_TEXT_CHARACTERS  # type: ignore[arg-type]
