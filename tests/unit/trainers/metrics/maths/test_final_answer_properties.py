"""A final answer is found in every notation and place, and any text is judged without an error."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.properties import QUICK, THOROUGH
from trainers.metrics.maths.final_answer import find_answer, judge_answer

PLACES = (
    "Some steps: 1 + 1.\n#### {}",
    "so \\boxed{{{}}} follows",
    "The answer is {}.",
    "We count and get {}",
)
integers = st.integers(-(10**12), 10**12)
# What models write: digits, signs, words, LaTeX and marks.
fragments = st.lists(
    st.text(max_size=6)
    | st.integers().map(str)
    | st.sampled_from(
        [
            "####",
            "\\boxed{",
            "}",
            "{",
            "The answer is",
            "정답은",
            "\\frac{1}{2}",
            "½",
            "%",
            "$",
            "^",
            "/",
            "\n",
            "1e9",
            ":",
        ]
    ),
    max_size=20,
).map("".join)


@QUICK
@given(integers, st.sampled_from(PLACES), st.sampled_from(["{}", "{:,}", "${}$", "**{}**"]))
def test_an_integer_is_found_in_every_place_and_notation(value: int, place: str, notation: str) -> None:
    found = find_answer(place.format(notation.format(value)))
    assert found.number is not None and found.number.value == value, found


@QUICK
@given(integers, st.integers(1, 10**6), st.sampled_from(["#### {}", "so \\boxed{{{}}}"]))
def test_a_fraction_is_exact(top: int, bottom: int, place: str) -> None:
    found = find_answer(place.format(f"{top}/{bottom}"))
    assert found.number is not None and found.number.value == Fraction(top, bottom)


@QUICK
@given(st.decimals(-(10**9), 10**9, places=4), st.sampled_from(PLACES))
def test_a_decimal_is_exact(value: object, place: str) -> None:
    found = find_answer(place.format(f"{value:f}"))
    assert found.number is not None and found.number.value == Fraction(str(value))


@QUICK
@given(integers, integers)
def test_two_integers_are_judged_by_their_values(answer: int, reference: int) -> None:
    judged = judge_answer(f"Step by step.\n#### {answer:,}", f"{reference}")
    assert judged.correct == (answer == reference)


def check_any_text(text: str, reference: str) -> None:
    found = find_answer(text)
    assert judge_answer(text, text).correct == (found.number is not None)
    judged = judge_answer(text, reference)
    assert judged.answer == found.number and judged.reason.endswith(".")
    assert not judged.correct or found.number is not None


test_any_text_is_judged_and_equals_itself = QUICK(given(fragments, fragments)(check_any_text))
test_many_texts_are_judged = pytest.mark.slow(THOROUGH(given(fragments, fragments)(check_any_text)))
