"""Mixtures: how many rows of each dataset an epoch has, which, and in what order."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from trainers.configs.base import DatasetShare
from trainers.configs.stage_config import parse_stage
from trainers.data.mixture import count_shares, describe_repeats, find_origin, write_mixture


def share(name: str = "a", **amount: Any) -> DatasetShare:
    return DatasetShare(dataset=name, **amount)


def write(folder: Path, name: str, count: int) -> Path:
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(json.dumps({"question": f"{name}{i}", "answer": "4"}) for i in range(count)))
    return path


def mix(folder: Path, *amounts: dict[str, Any], seed: int = 1) -> list[str]:
    sizes = {"a": 100, "b": 40, "c": 3}
    shares = [share(name, **amount) for name, amount in zip(sizes, amounts, strict=False)]
    paths = [
        write(folder, each.dataset, sizes[each.dataset]) for each in shares if isinstance(each.dataset, str)
    ]
    write_mixture(paths, shares, seed, folder / "out", folder / "origins")
    return [json.loads(line)["question"] for line in (folder / "out").read_text().splitlines()]


@pytest.mark.parametrize(
    ("amounts", "counts"),
    [
        ([{}, {}], [100, 40]),
        ([{"weight": 1}, {"weight": 1}], [40, 40]),
        ([{"weight": 3}, {"weight": 1}], [100, 33]),
        ([{"weight": 0.5}, {"weight": 0.25}], [80, 40]),
        ([{"rows": 250}, {"rows": 10}], [250, 10]),
        ([{"weight": 1000}, {"weight": 1}], [100, 1]),
        ([{"weight": 2}, {"rows": 5}], [100, 5]),
    ],
)
def test_an_epoch_has_rows_by_weight_or_exactly(amounts: list[dict[str, Any]], counts: list[int]) -> None:
    assert count_shares([share(**amount) for amount in amounts], [100, 40]) == counts


def test_rows_are_interleaved_evenly_and_depend_on_the_seed_alone(tmp_path: Path) -> None:
    mixed = mix(tmp_path, {"weight": 3}, {"weight": 1})
    assert mixed == mix(tmp_path, {"weight": 3}, {"weight": 1})
    assert mixed != mix(tmp_path, {"weight": 3}, {"weight": 1}, seed=2)
    for start in range(0, len(mixed) - 20, 4):
        assert 4 <= Counter(name[0] for name in mixed[start : start + 20])["b"] <= 6
    assert len(set(mixed)) == 133


def test_more_rows_than_the_file_has_repeat_all_before_any_is_repeated_again(tmp_path: Path) -> None:
    counts = Counter(mix(tmp_path, {"rows": 1}, {"rows": 1}, {"rows": 8}))
    assert sorted(counts[f"c{i}"] for i in range(3)) == [2, 3, 3]
    assert describe_repeats(8, 3) == "each of 3 rows 2 times, and 2 of them once more"
    assert describe_repeats(6, 3) == "each of 3 rows 2 times" and describe_repeats(3, 3) is None


def test_each_row_of_a_mixture_can_be_found_in_its_dataset(tmp_path: Path) -> None:
    names = ["a", "b"]
    for line, question in enumerate(mix(tmp_path, {"rows": 30}, {}), start=1):
        position, original = find_origin(tmp_path / "origins", line)
        assert question == f"{names[position]}{original - 1}"


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ([{"dataset": "a", "weight": 0}], "greater than 0"),
        ([{"dataset": "a", "weight": -1}], "greater than 0"),
        ([{"dataset": "a", "rows": 0}], "greater than or equal to 1"),
        ([{"dataset": "a", "weight": 1, "rows": 1}], "weight and rows exclude each other"),
        ([{"dataset": "a"}, {"dataset": "a"}], "'a' is listed twice; give it one entry"),
        ([], "at least 1 item"),
        (["a", "b"], 'each dataset of a list is an object: write {"dataset": "a"}'),
    ],
)
def test_a_mixture_that_makes_no_sense_is_refused(dataset: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        parse_stage({"stage": "sft", "base": "m", "dataset": dataset})


def test_a_dataset_without_rows_is_named(tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"none\.jsonl: The file contains no rows"):
        write_mixture([tmp_path / "none.jsonl"], [share()], 1, tmp_path / "out", tmp_path / "origins")
