"""Events as lines that any JSON reader takes."""

import json
import math
from pathlib import Path

from trainers.runtime.events import EventWriter


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with EventWriter(path) as report:
        report.metrics(3, 10, {"loss": math.nan, "grad_norm": math.inf, "epoch": 0.5})
    assert lines(path)[0]["values"] == {"loss": None, "grad_norm": None, "epoch": 0.5}


def test_each_event_is_readable_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with EventWriter(path) as report:
        report.warning("rows_truncated", "Zeilen gekürzt")
        assert lines(path)[0]["message"] == "Zeilen gekürzt"


def test_progress_is_about_one_a_second_with_first_and_last(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with EventWriter(path, progress_seconds=60) as report:
        for step in range(101):
            report.progress(step, 100)
    assert [line["step"] for line in lines(path)] == [0, 100]


def test_torn_line_of_a_killed_program_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"type": "metr')
    with EventWriter(path) as report:
        report.progress(1, 2)
    torn, whole = path.read_text().splitlines()
    assert torn == '{"type": "metr'
    assert json.loads(whole)["step"] == 1
