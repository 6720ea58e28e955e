"""Equality of response and reference."""

from collections.abc import Sequence

from trainers.configs.metrics import ExactMatch, MathsExactMatch
from trainers.metrics.maths import exact_match, final_answer
from trainers.metrics.metric import EvaluatedRow, MetricValues


class ExactMatchMetric:
    """Share of the rows whose response is the reference, apart from white space around both."""

    def __init__(self, config: ExactMatch) -> None:
        self._ignore_case = config.ignore_case

    def check_row(self, row: EvaluatedRow) -> str | None:
        """Return that the reference is empty, if it is."""
        return None if row.reference.strip() else "has no reference"

    def score(self, rows: Sequence[EvaluatedRow]) -> MetricValues:
        """Compare the first response of each row."""
        hits = [self._fold(row.response) == self._fold(row.reference) for row in rows]
        return share_of(hits, f"exact_match|case:{'lc' if self._ignore_case else 'mixed'}")

    def _fold(self, text: str) -> str:
        return text.strip().casefold() if self._ignore_case else text.strip()


class MathsExactMatchMetric:
    """Share of the rows whose final answer equals the reference's; as in the reward `correctness`."""

    def __init__(self, _config: MathsExactMatch) -> None:
        pass

    def check_row(self, row: EvaluatedRow) -> str | None:
        """Return that the reference has no final answer, if so."""
        if final_answer(row.reference) is not None:
            return None
        return "has no final answer in its reference: write the answer, such as `#### 7`, at its end"

    def score(self, rows: Sequence[EvaluatedRow]) -> MetricValues:
        """Compare the final answer of the first response of each row."""
        return share_of([exact_match(row.response, row.reference) for row in rows], "maths_exact_match")


def share_of(hits: Sequence[bool], signature: str) -> MetricValues:
    """Return the share of true values as a metric's values."""
    values = [float(hit) for hit in hits]
    return MetricValues(sum(values) / len(values), values, signature, is_share=True)
