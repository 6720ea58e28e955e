"""Metrics of the final answer of the first response: wherever it is written, or in a required form only."""

from collections.abc import Sequence

from trainers.configs.metrics import MathsExactMatch, MathsStrictMatch
from trainers.configs.rewards import AnswerForm
from trainers.metrics.exact import share_of
from trainers.metrics.maths.final_answer import (
    exact_match,
    final_answer,
    find_answer,
    find_formed_answer,
)
from trainers.metrics.maths.numbers import is_same_number
from trainers.metrics.metric import EvaluatedRow, MetricValues


def find_reference_fault(row: EvaluatedRow) -> str | None:
    """Return that the reference has no final answer, if so."""
    if final_answer(row.reference) is not None:
        return None
    return "has no final answer in its reference: write the answer, such as `#### 7`, at its end"


def is_strict_match(response: str, reference: str, form: AnswerForm | None) -> bool:
    """Return whether the answer in the required form equals the final answer of the reference."""
    answer, expected = find_formed_answer(response, form).number, find_answer(reference).number
    return answer is not None and expected is not None and is_same_number(answer, expected)


class MathsExactMatchMetric:
    """Share of the rows whose final answer equals the reference's; as in the reward `correctness`."""

    def __init__(self, _config: MathsExactMatch) -> None:
        pass

    def check_row(self, row: EvaluatedRow) -> str | None:
        """Return that the reference has no final answer, if so."""
        return find_reference_fault(row)

    def score(self, rows: Sequence[EvaluatedRow]) -> MetricValues:
        """Compare the final answer of the first response of each row."""
        return share_of([exact_match(row.response, row.reference) for row in rows], "maths_exact_match")


class MathsStrictMatchMetric:
    """Share of the rows whose answer has the required form and equals the reference's."""

    def __init__(self, config: MathsStrictMatch) -> None:
        self._form = config.form

    def check_row(self, row: EvaluatedRow) -> str | None:
        """Return that the reference has no final answer, if so."""
        return find_reference_fault(row)

    def score(self, rows: Sequence[EvaluatedRow]) -> MetricValues:
        """Compare the answer in the required form; `details` counts the right answers without the form."""
        hits = [is_strict_match(row.response, row.reference, self._form) for row in rows]
        without_form = [find_formed_answer(row.response, self._form).number is None for row in rows]
        right = [exact_match(row.response, row.reference) for row in rows]
        details = {
            "without_form": sum(without_form),
            "right_without_form": sum(a and b for a, b in zip(without_form, right, strict=True)),
        }
        return share_of(hits, f"maths_strict_match|form:{self._form or 'any'}", details)
