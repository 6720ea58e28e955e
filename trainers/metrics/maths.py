"""Exact match of final answers, the same comparison as in the reward `correctness`."""

from fractions import Fraction

from trainers.metrics.final_answer import find_answer, judge_answer


def exact_match(prediction: str, reference: str) -> bool:
    """Return whether both texts have the same final answer; a text without one never matches."""
    return judge_answer(prediction, reference).correct


def final_answer(text: str) -> Fraction | None:
    """Return the final answer of a text as an exact number, a time of day in hours, or None."""
    number = find_answer(text).number
    return None if number is None else number.value
