"""Perplexity of the references under the model."""

import math
from collections.abc import Sequence

from trainers.configs.metrics.general import Perplexity
from trainers.metrics.metric import CorpusStatistics, EvaluatedRow, MetricValues, missing_reference
from trainers.runtime.errors import ConfigInvalid


class PerplexityMetric:
    """Exponential of the mean negative log-likelihood of a reference's token, given its prompt."""

    def __init__(self, _config: Perplexity) -> None:
        pass

    def check_row(self, row: EvaluatedRow) -> str | None:
        """Return that the reference is empty, if it is."""
        return missing_reference(row)

    def score(self, rows: Sequence[EvaluatedRow]) -> MetricValues:
        """Compute the value over all tokens of all references; the value of a row is over its own."""
        scores = [row.reference_logprobs for row in rows]
        sums = [(-math.fsum(one), float(len(one))) for one in scores if one]
        values = [math.exp(-math.fsum(one) / len(one)) if one else None for one in scores]
        if not sums:
            raise ConfigInvalid(
                "The references have no log-probabilities under the model, which perplexity needs.",
                "Use an engine that scores the tokens of a prompt: hf, mlx or vllm.",
            )
        total = [math.fsum(column) for column in zip(*sums, strict=True)]
        return MetricValues(
            _perplexity(total),
            values,
            "perplexity|tokens:reference and end of turn|mean:token",
            higher_is_better=False,
            corpus=CorpusStatistics(sums, _perplexity),
            details={"tokens": int(total[1])},
        )


def _perplexity(sums: Sequence[float]) -> float:
    nll, n_tokens = sums
    return math.exp(nll / n_tokens)
