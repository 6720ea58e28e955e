"""Equality of response and reference."""

from collections.abc import Mapping, Sequence
from typing import Any

from trainers.configs.metrics import ExactMatch
from trainers.metrics.metric import EvaluatedRow, MetricValues, missing_reference


class ExactMatchMetric:
    """Share of the rows whose response is the reference, apart from white space around both."""

    def __init__(self, config: ExactMatch) -> None:
        self._ignore_case = config.ignore_case

    def check_row(self, row: EvaluatedRow) -> str | None:
        """Return that the reference is empty, if it is."""
        return missing_reference(row)

    def score(self, rows: Sequence[EvaluatedRow]) -> MetricValues:
        """Compare the first response of each row."""
        hits = [self._fold(row.response) == self._fold(row.reference) for row in rows]
        return share_of(hits, f"exact_match|case:{'lc' if self._ignore_case else 'mixed'}")

    def _fold(self, text: str) -> str:
        return text.strip().casefold() if self._ignore_case else text.strip()


def share_of(hits: Sequence[bool], signature: str, details: Mapping[str, Any] | None = None) -> MetricValues:
    """Return the share of true values as a metric's values."""
    values = [float(hit) for hit in hits]
    return MetricValues(sum(values) / len(values), values, signature, is_share=True, details=details or {})
