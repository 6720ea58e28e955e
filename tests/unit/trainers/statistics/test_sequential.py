"""The test that may be looked at after every row."""

import numpy as np
import pytest
from scipy.special import betainc, betaln

from trainers.statistics.sequential import find_passing_row, grow_evidence


def test_the_evidence_is_close_to_that_of_the_mixture_in_closed_form() -> None:
    # A uniform mixture over probabilities of a win above 1/2: 2^(m+1) B(b+1, c+1) (1 - I(1/2)).
    wins, losses = 40, 15
    differences = np.random.default_rng(0).permutation([1.0] * wins + [-1.0] * losses)
    log_uniform = (
        (wins + losses + 1) * np.log(2)
        + betaln(wins + 1, losses + 1)
        + np.log1p(-betainc(wins + 1, losses + 1, 0.5))
    )
    assert np.log(grow_evidence(differences)[-1]) == pytest.approx(log_uniform, abs=1.5)


def test_a_much_better_model_passes_early_and_an_equal_one_does_not() -> None:
    better = np.tile([1.0, 0.0, 1.0, -1.0, 1.0], 40)
    assert (find_passing_row(better) or 200) < 50
    assert find_passing_row(np.tile([1.0, -1.0, 0.0], 300)) is None
    assert find_passing_row(np.tile([1.0, -1.0, 0.0, 0.0, 0.0], 300), margin=0.1) is not None


def test_a_result_stays_when_rows_are_added() -> None:
    differences = np.random.default_rng(1).choice([-1.0, 0.0, 1.0], 500, p=[0.05, 0.8, 0.15])
    row = find_passing_row(differences)
    assert row is not None
    assert find_passing_row(differences[:row]) == row
    assert find_passing_row(differences[: row - 1]) is None


def test_the_bound_scales_the_evidence() -> None:
    differences = np.random.default_rng(2).uniform(-1, 1, 50)
    scaled = grow_evidence(30 * differences, bound=30, margin=3)
    assert scaled == pytest.approx(grow_evidence(differences, margin=0.1))


def test_no_rows_have_no_evidence_and_impossible_values_are_refused() -> None:
    assert find_passing_row(np.array([])) is None
    with pytest.raises(ValueError, match="above the stated bound of 1"):
        grow_evidence(np.array([2.0]))
    with pytest.raises(ValueError, match="excludes no difference"):
        grow_evidence(np.array([0.5]), margin=1.0)
