"""Perplexity is exp of the mean negative log-likelihood over all tokens, not the mean of the rows' values."""

import math

import numpy
import pytest

from tests.unit.trainers.metrics.general.conftest import make_row
from trainers.configs.metrics.general import Perplexity
from trainers.metrics.general.perplexity import PerplexityMetric
from trainers.runtime.errors import ConfigInvalid


def test_the_value_is_over_the_tokens_of_all_references() -> None:
    first, second = [-0.5, -1.5, -2.0], [-0.1]
    rows = [make_row(reference_logprobs=one) for one in (first, second)]
    values = PerplexityMetric(Perplexity()).score(rows)
    assert values.value == pytest.approx(float(numpy.exp(-numpy.mean(first + second))))
    assert values.row_values == pytest.approx([math.exp(4 / 3), math.exp(0.1)])
    assert values.corpus is not None and not values.higher_is_better
    assert values.corpus.compute([2 * sum(column) for column in zip(*values.corpus.rows, strict=True)]) == (
        pytest.approx(values.value)
    )


def test_an_engine_without_log_probabilities_is_an_error() -> None:
    with pytest.raises(ConfigInvalid, match="no log-probabilities"):
        PerplexityMetric(Perplexity()).score([make_row()])
