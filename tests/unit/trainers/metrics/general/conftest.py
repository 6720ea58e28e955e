"""Rows of an evaluation, for the tests of general metrics."""

from typing import Any

from trainers.metrics.metric import EvaluatedRow


def make_row(response: str | None = "", reference: str = "reference", **values: Any) -> EvaluatedRow:
    """Return a row with one response."""
    return EvaluatedRow(1, [{"role": "user", "content": "q"}], reference, (response,), **values)
