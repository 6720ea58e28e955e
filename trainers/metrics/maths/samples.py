"""Metrics of several samples for each prompt: pass@k and the majority vote."""

import math
from collections import Counter
from collections.abc import Sequence

from trainers.configs.metrics import MajorityAtK, MetricConfig, PassAtK
from trainers.metrics.exact import share_of
from trainers.metrics.maths.answers import find_reference_fault, is_strict_match
from trainers.metrics.maths.final_answer import exact_match, find_answer
from trainers.metrics.metric import EvaluatedRow, MetricValues
from trainers.runtime.errors import ConfigInvalid


class PassAtKMetric:
    """Probability that at least one of k samples is right."""

    def __init__(self, config: PassAtK) -> None:
        self._config = config

    def check_row(self, row: EvaluatedRow) -> str | None:
        """Return that the reference has no final answer, if so."""
        return find_reference_fault(row)

    def score(self, rows: Sequence[EvaluatedRow]) -> MetricValues:
        """Estimate it for each row from all samples; raises ConfigInvalid if there are fewer than k."""
        k, values = self._config.k, []
        for row in rows:
            _require_samples(self._config, row)
            correct = sum(self._is_correct(response or "", row.reference) for response in row.responses)
            values.append(estimate_pass_at_k(len(row.responses), correct, k))
        n_samples = sorted({len(row.responses) for row in rows})
        signature = f"pass_at_k|k:{k}|samples:{'-'.join(map(str, n_samples))}"
        return MetricValues(
            sum(values) / len(values),
            values,
            signature + ("|form:any" if self._config.strict else ""),
            # With more samples than k, a row's value is a probability.
            is_share=n_samples == [k],
        )

    def _is_correct(self, response: str, reference: str) -> bool:
        if self._config.strict:
            return is_strict_match(response, reference, None)
        return exact_match(response, reference)


class MajorityAtKMetric:
    """Share of the rows on which the most frequent answer of k samples is right.

    A response without a final answer has no vote. Of equally frequent answers, the one that was sampled first
    counts, which depends on nothing but the seeds.
    """

    def __init__(self, config: MajorityAtK) -> None:
        self._config = config

    def check_row(self, row: EvaluatedRow) -> str | None:
        """Return that the reference has no final answer, if so."""
        return find_reference_fault(row)

    def score(self, rows: Sequence[EvaluatedRow]) -> MetricValues:
        """Let the first k samples vote; raises ConfigInvalid if there are fewer."""
        hits, n_ties = [], 0
        for row in rows:
            _require_samples(self._config, row)
            winner, is_tie = self._vote(row)
            hits.append(exact_match(winner, row.reference))
            n_ties += is_tie
        return share_of(hits, f"majority_at_k|k:{self._config.k}|ties:first", {"ties": n_ties})

    def _vote(self, row: EvaluatedRow) -> tuple[str, bool]:
        """Return the first response with the winning answer, or an empty text, and whether it was tied."""
        votes: Counter[object] = Counter()
        first: dict[object, str] = {}
        for response in row.responses[: self._config.k]:
            number = find_answer(response or "").number
            if number is not None:
                answer = (number.value, number.percent, number.clock, number.half)
                votes[answer] += 1
                first.setdefault(answer, response or "")
        # `most_common` keeps the order of the first occurrences.
        ranked = votes.most_common(2)
        if not ranked:
            return "", False
        return first[ranked[0][0]], len(ranked) > 1 and ranked[0][1] == ranked[1][1]


def estimate_pass_at_k(n: int, correct: int, k: int) -> float:
    """Return the unbiased estimate of pass@k from n samples, 1 − C(n−c, k) / C(n, k).

    Source: Chen et al., 2021, arXiv:2107.03374, equation 1. The plug-in 1 − (1 − c/n)^k is biased.
    """
    assert 0 <= correct <= n and k <= n
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def _require_samples(config: MetricConfig, row: EvaluatedRow) -> None:
    if len(row.responses) < config.min_samples:
        raise ConfigInvalid(
            f"{config.label} needs {config.min_samples} samples of each row; row {row.row} has "
            f"{len(row.responses)}.",
            f"Set `samples` to at least {config.min_samples} and `temperature` above 0, or lower k.",
        )
