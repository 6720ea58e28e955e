"""Whether a worked answer ends in the right number, by the same judgement as the maths reward."""

from fractions import Fraction

from trainers.metrics.final_answer import find_answer, judge_answer


def exact_match(prediction: str, reference: str) -> bool:
    """Whether both texts end in the same number; a text without a number matches nothing."""
    return judge_answer(prediction, reference).correct


def final_answer(text: str) -> Fraction | None:
    """The exact number that the text gives as its answer, in hours if it is a clock's time, or None."""
    number = find_answer(text).number
    return None if number is None else number.value
