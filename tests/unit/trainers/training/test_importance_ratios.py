"""Goal: an engine that samples from another model is named in every precision that a run can have."""

import pytest

from trainers.configs.training import Precision
from trainers.training.on_policy.importance_ratios import DIFFERENCE, OUTSIDE, describe_mismatch


@pytest.mark.parametrize("precision", [one for one in Precision if one is not Precision.auto])
def test_rounding_is_no_mismatch_and_another_model_is_one(precision: Precision) -> None:
    assert describe_mismatch(3, {DIFFERENCE: 0.001, OUTSIDE: 0.0}, precision) is None
    assert "another model" in (describe_mismatch(3, {DIFFERENCE: 0.3, OUTSIDE: 0.4}, precision) or "")
