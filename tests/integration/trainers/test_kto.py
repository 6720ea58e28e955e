"""Goal: KTO learns from labels with any micro-batch, and resumes after a kill. Method: tiny real runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.integration.trainers import number_task
from tests.integration.trainers.conftest import Programs, assert_same_run, events, kill_at_step, losses
from tests.integration.trainers.stages import run_stage
from trainers.configs import parse_stage
from trainers.configs.stages.kto import KtoConfig
from trainers.kto import plan
from trainers.modeling.load import load_tokenizer
from trainers.preflight.feedback.label_findings import check_labels
from trainers.rendering.examples.labelled import load_labelled
from trainers.runtime import run_dir as files
from trainers.runtime.errors import DatasetInvalid

STEPS = 40  # 48 rows in batches of 20: an epoch ends in a step of 8 rows.

Write = Callable[[list[dict[str, Any]]], str]


@pytest.fixture(scope="module")
def labelled_rows(write_rows: Write) -> str:
    return write_rows(number_task.labelled_rows())


@pytest.fixture(scope="module")
def full(undecided: Path, labelled_rows: str) -> dict[str, Any]:
    return {
        "stage": "kto",
        "base": str(undecided),
        "dataset": labelled_rows,
        "tuning": {"method": "full"},
        "max_steps": STEPS,
        "batch_size": 20,
        "micro_batch_size": 10,
        "learning_rate": 1e-3,
        "log_every_steps": 1,
        "save_every_steps": 10,
    }


@pytest.fixture(scope="module")
def full_run(full: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_to_end(full, tmp_path_factory.mktemp("full") / "run")


def test_model_learns_the_completions_labelled_as_good(full_run: Path, undecided: Path) -> None:
    before = number_task.held_out_score(str(undecided))
    after = number_task.held_out_score(str(full_run / "model"))
    assert before <= 0.2
    assert after >= 0.6
    result = files.read_result(full_run)
    assert result is not None
    assert (result["stage"], result["model"]["kind"]) == ("kto", "base")
    assert result["metrics"]["reward_good"] > result["metrics"]["reward_bad"]
    first = events(full_run, "metrics")[0]["values"]
    assert [first[f"rewards/{side}"] for side in ("chosen", "rejected")] == pytest.approx([0, 0], abs=1e-5)


def test_killed_run_repeats_every_loss_across_epochs(
    programs: Programs, full: dict[str, Any], full_run: Path, tmp_path: Path
) -> None:
    kill_at_step(programs, "trainers.kto", full, tmp_path, at_step=24)
    run_to_end(full, tmp_path)
    assert_same_run(tmp_path, full_run, "model.safetensors")


def test_smaller_micro_batch_has_the_same_losses(
    full: dict[str, Any], labelled_rows: str, tmp_path: Path
) -> None:
    # TRL alone refuses micro-batches of one row, from which it could not estimate the divergence.
    short = full | {"max_steps": 3, "save_every_steps": 3, "validation_dataset": labelled_rows}
    run_to_end(short | {"micro_batch_size": 1}, tmp_path / "small")
    run_to_end(short | {"micro_batch_size": 20}, tmp_path / "large")
    small, large = losses(tmp_path / "small"), losses(tmp_path / "large")
    assert list(small.values()) == pytest.approx(list(large.values()), abs=1e-5)
    validation = [
        event["values"]["validation_loss"]
        for run in ("small", "large")
        for event in events(tmp_path / run, "metrics")
        if "validation_loss" in event["values"]
    ]
    assert validation[0] == pytest.approx(validation[1], abs=1e-5)


def test_adapter_is_compared_with_the_adapter_that_it_continues(
    adapted: dict[str, str], labelled_rows: str, full: dict[str, Any], tmp_path: Path
) -> None:
    lora = {"base": adapted, "tuning": {"method": "lora", "rank": 8, "alpha": 16}, "max_steps": 2}
    run_to_end(full | lora | {"loss": "apo_zero_unpaired"}, tmp_path)
    rewards = [event["values"]["rewards/chosen"] for event in events(tmp_path, "metrics")]
    assert rewards[0] == pytest.approx(0, abs=1e-5)
    assert abs(rewards[1]) > 1e-4


def test_pair_is_a_good_and_a_bad_completion(starter: Path, labelled_rows: str, write_rows: Write) -> None:
    pairs = [
        {"prompt": question, "chosen": number_task.right(n), "rejected": number_task.wrong(n)}
        for question, n in number_task.TRAINED
    ]
    tokenizer = load_tokenizer(str(starter))
    of_pairs = list(load_labelled(write_rows(pairs), tokenizer, 64).records)
    of_rows = list(load_labelled(labelled_rows, tokenizer, 64).records)
    assert [*of_pairs[::2], *of_pairs[1::2]] == of_rows


def test_dry_run_returns_the_resolved_plan(full: dict[str, Any]) -> None:
    planned = plan(parse_stage(full | {"max_steps": None}))  # type: ignore[arg-type]
    expected = {"stage": "kto", "rows": 48, "good": 24, "bad": 24, "steps": 3, "device": "cpu"}
    assert expected.items() <= planned.items()
    assert [found["code"] for found in planned["findings"]] == ["few_steps"]
    [host] = planned["memory"]["hosts"]
    assert host["parts"]["reference"] > 0


@pytest.mark.parametrize(
    ("row", "found"),
    [({}, "is missing"), ({"label": "good"}, "is 'good'"), ({"label": 1}, "is a number")],
)
def test_row_without_a_label_is_named(
    row: dict[str, Any], found: str, starter: Path, write_rows: Write
) -> None:
    rows = write_rows(
        [{"prompt": "2 + 2?", "completion": "4", "label": True}, {"prompt": "1?", "completion": "1"} | row]
    )
    with pytest.raises(DatasetInvalid, match=f"Row 2 .* needs a `label`.*{found}"):
        load_labelled(rows, load_tokenizer(str(starter)), 64)


def test_labels_of_one_kind_are_an_error_and_unequal_ones_a_warning(starter: Path, write_rows: Write) -> None:
    good, bad = number_task.labelled_rows()[:24], number_task.labelled_rows()[24:]

    def check(rows: list[dict[str, Any]], **fields: Any) -> list[tuple[str, str]]:
        labelled = load_labelled(write_rows(rows), load_tokenizer(str(starter)), 64)
        config = KtoConfig(base="a/b", dataset="rows.jsonl", **fields)
        return [(found.level, found.code) for found in check_labels(config, labelled)]

    assert check(good) == check(bad) == [("error", "labels_of_one_kind")]
    assert check(good + bad) == []
    assert check(good + bad[:2]) == [("warning", "labels_unbalanced")]
    assert check(good + bad[:2], undesirable_weight=10.0) == []


def test_dropout_without_effect_is_refused() -> None:
    config = {"stage": "kto", "base": "a/b", "dataset": "rows.jsonl", "tuning": {"dropout": 0.1}}
    with pytest.raises(ValidationError, match="kto disables dropout"):
        parse_stage(config)


def run_to_end(config: dict[str, Any], run_dir: Path) -> Path:
    assert run_stage(config, run_dir) is not None
    return run_dir
