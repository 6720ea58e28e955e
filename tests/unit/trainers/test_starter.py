"""The training of the example model reports when it will end."""

import pytest

from trainers.starter import RemainingTime


def test_the_time_left_is_unknown_until_enough_steps_are_timed() -> None:
    left = RemainingTime(total_steps=105)
    # The first step takes 30 seconds, all others a tenth of one.
    times = {step: 30 + step / 10 for step in range(1, 106)}
    found = {step: left.estimate(step, now) for step, now in times.items()}
    assert {found[step] for step in range(1, 44)} == {None}
    assert [found[step] for step in (50, 55, 105)] == pytest.approx([5.5, 5, 0])
