"""Goal: a run saves checkpoints by steps where its config names them, and else by the clock."""

from typing import Any

import pytest

from trainers.configs import parse_stage
from trainers.training.checkpoints.interval import (
    CheckpointTimer,
    steps_between_checkpoints,
    steps_between_validations,
)


def config(**values: Any) -> Any:
    return parse_stage({"stage": "sft", "base": "org/base", "dataset": "rows", **values})


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_checkpoint_is_due_a_quarter_of_an_hour_after_the_last_one() -> None:
    clock = Clock()
    timer = CheckpointTimer(config(), 10_000, clock)
    clock.now += 899
    assert not timer.is_due
    clock.now += 1
    assert timer.is_due
    timer.restart()
    assert not timer.is_due


@pytest.mark.parametrize("values", [{"save_every_steps": 5}, {"save_every_epoch": True, "epochs": 2}])
def test_steps_and_epochs_replace_the_clock(values: dict[str, Any]) -> None:
    clock = Clock()
    timer = CheckpointTimer(config(**values), 10, clock)
    clock.now += 10_000
    assert not timer.is_due
    assert steps_between_checkpoints(config(**values), 10) == 5


def test_validations_follow_the_checkpoints_unless_those_are_saved_by_time() -> None:
    assert steps_between_validations(config(save_every_steps=7), 10) == 7
    assert steps_between_validations(config(), 10) == 100
    assert steps_between_validations(config(validate_every_steps=3, save_every_steps=7), 10) == 3
