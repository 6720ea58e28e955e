import json
import random
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from trainers.configs import DatasetPart
from trainers.data.files.jsonl import iter_rows
from trainers.data.fingerprint import prompt_text
from trainers.data.formats import Row, RowFormat
from trainers.data.splits import SplitReport, split_file


def rows(count: int) -> list[Row]:
    return [{"question": f"q{n}", "answer": "a"} for n in range(count)]


def texts(folder: Path) -> dict[DatasetPart, list[str]]:
    return {
        part: [row["question"] for _, row in iter_rows(folder / f"{part}.jsonl")]
        for part in DatasetPart
        if (folder / f"{part}.jsonl").exists()
    }


def split(
    write: Callable[..., Path], tmp_path: Path, content: list[Row], name: str = "parts", **sizes: Any
) -> tuple[dict[DatasetPart, list[str]], SplitReport]:
    report = split_file(write(*content), tmp_path / name, **sizes)
    parts = texts(tmp_path / name)
    assert {part: len(found) for part, found in parts.items()} == report.rows
    return parts, report


def test_every_row_lands_in_one_part_in_the_order_of_the_file(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    parts, _ = split(write, tmp_path, rows(500), validation=0.1, test=0.2)
    assert sorted(chain(*parts.values())) == sorted(f"q{n}" for n in range(500))
    assert all(found == sorted(found, key=lambda text: int(text[1:])) for found in parts.values())


def test_shares_are_met_nearly_and_counts_exactly(write: Callable[..., Path], tmp_path: Path) -> None:
    parts, _ = split(write, tmp_path, rows(4000), validation=0.1, test=0.2)
    assert abs(len(parts[DatasetPart.validation]) - 400) < 60
    assert abs(len(parts[DatasetPart.test]) - 800) < 80
    counted, _ = split(write, tmp_path, rows(4000), "counted", validation=123, test=45)
    assert {part: len(found) for part, found in counted.items()} == {
        "train": 3832,
        "validation": 123,
        "test": 45,
    }


@pytest.mark.parametrize("sizes", [{"validation": 0.2, "test": 0.2}, {"validation": 70, "test": 0.1}])
def test_neither_the_order_of_rows_nor_that_of_their_keys_moves_a_row(
    write: Callable[..., Path], tmp_path: Path, sizes: dict[str, Any]
) -> None:
    parts, _ = split(write, tmp_path, rows(300), **sizes)
    shuffled = [dict(reversed(row.items())) for row in random.Random(1).sample(rows(300), 300)]
    again, _ = split(write, tmp_path, shuffled, "again", **sizes)
    assert {part: sorted(found) for part, found in again.items()} == {
        part: sorted(found) for part, found in parts.items()
    }


def test_with_shares_a_row_stays_in_its_part_when_others_come(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    fewer, _ = split(write, tmp_path, rows(300), test=0.3)
    more, _ = split(write, tmp_path, rows(600), "more", test=0.3)
    assert all(set(fewer[part]) <= set(more[part]) for part in fewer)


def test_equal_rows_land_together_and_are_counted_once(write: Callable[..., Path], tmp_path: Path) -> None:
    parts, report = split(write, tmp_path, rows(50) * 3, validation=0.3, test=30)
    assert not set(parts[DatasetPart.train]) & set(parts[DatasetPart.test])
    assert not set(parts[DatasetPart.validation]) & set(parts[DatasetPart.test])
    assert sum(report.distinct_rows.values()) == 50
    assert report.rows[DatasetPart.test] == 3 * report.distinct_rows[DatasetPart.test] == 30


def test_another_seed_gives_other_parts_and_the_same_seed_the_same(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    first, second, third = (
        split(write, tmp_path, rows(200), str(number), test=0.5, seed=seed)[0][DatasetPart.test]
        for number, seed in enumerate((1, 2, 1))
    )
    assert first == third
    assert first != second


@pytest.mark.parametrize(
    "sizes", [{"test": 0.001}, {"test": 20}, {"validation": 10, "test": 10}, {"test": 0.6, "validation": 0.7}]
)
def test_an_empty_part_is_rejected_before_anything_is_written(
    write: Callable[..., Path], tmp_path: Path, sizes: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="would be empty"):
        split_file(write(*rows(20)), tmp_path / "parts", **sizes)
    assert not (tmp_path / "parts").exists()


@pytest.mark.parametrize("size", [-1, 1.5])
def test_a_size_that_is_neither_share_nor_count_is_rejected(
    write: Callable[..., Path], tmp_path: Path, size: float
) -> None:
    with pytest.raises(ValueError, match="`test` is"):
        split_file(write(*rows(20)), tmp_path / "parts", test=size)


def test_a_training_part_alone_is_a_copy(write: Callable[..., Path], tmp_path: Path) -> None:
    parts, report = split(write, tmp_path, rows(3))
    assert parts == {DatasetPart.train: ["q0", "q1", "q2"]}
    assert json.loads(report.model_dump_json())["rows"] == {"train": 3}


def test_rows_of_prompts_are_grouped_by_their_prompt() -> None:
    row = {
        "messages": [{"role": "system", "content": "Add."}, {"role": "user", "content": "1 + 1"}],
        "answer": "2",
    }
    assert prompt_text(row, RowFormat.prompt) == "1 + 1"
