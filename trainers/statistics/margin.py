"""Whether a model is at most so much worse than another one: the test behind "not worse than d"."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from trainers.metrics.metric import MetricValues
from trainers.statistics.comparison import make_test
from trainers.statistics.paired_tests.paired_test import p_value_above, p_value_below
from trainers.statistics.pairs import pair_rows


@dataclass(frozen=True)
class MarginTest:
    """The one-sided test that a model is worse than another one by less than a margin."""

    n: int
    """Rows with a value for both models."""
    difference: float
    """Value of the model minus value of the other one, on the metric's scale."""
    bound: float | None
    """The worst difference that the rows are compatible with; None if the rows are too few for one.

    It is a lower bound of the difference where higher values are better, otherwise an upper one.
    """
    p_value: float
    """Probability of such a difference if the model is worse by the margin or more."""
    met: bool
    """Whether p is at most alpha, which is so exactly if the bound is on the good side of the margin."""
    method: str


def check_margin(
    a: MetricValues,
    b: MetricValues,
    *,
    margin: float,
    clusters: Sequence[Hashable] | None = None,
    alpha: float = 0.05,
    seed: int = 0,
) -> MarginTest:
    """Test whether model `a` is worse than `b` by less than `margin`, with confidence `1 - alpha`.

    A margin of 0 asks whether `a` is better, a negative one whether it is better by more than so much. The
    bound is that of the two-sided interval at `1 - 2 alpha`, so that test and bound agree.

    Source: Piaggio and others, 2012, doi:10.1001/jama.2012.87802 (one-sided bounds for non-inferiority).

    Raises:
        ValueError: If the models have values for different rows, or of different metrics.
    """
    pairs = pair_rows(a, b, clusters)
    test = make_test(a, b, pairs, seed)
    interval = test.interval(2 * alpha)
    if a.higher_is_better:
        p_value, bound = p_value_above(test, -margin), interval and interval[0]
    else:
        p_value, bound = p_value_below(test, margin), interval and interval[1]
    return MarginTest(pairs.n, test.estimate, bound, p_value, p_value <= alpha, test.method)
