"""Exact match of final answers."""

from decimal import Decimal

import pytest

from trainers.metrics.maths.final_answer import exact_match, final_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("4 + 4 = 8.\n#### 8", "8"),
        ("#### 1,234,567", "1234567"),
        ("#### $1,200.50", "1200.50"),
        ("#### -$5", "-5"),
        ("#### −7", "-7"),
        ("#### 30%", "30"),
        ("#### 18 apples\nQuestion: 99", "18"),
        ("#### 5\n#### 6", "5"),
        ("#### none, so 3", "3"),
        (r"so \boxed{12} and not 13", "12"),
        (r"\boxed{1} then \boxed{\text{about } 2}", "2"),
        (r"the price is \boxed{\$4{,}5}", "4"),
        (r"\boxed{42", "42"),
        ("That is 10 - 3 = 7 dollars.", "7"),
        ("10-3", "3"),
        ("It cost 2.50.", "2.50"),
        ("(-3)", "-3"),
        (".5", "0.5"),
        ("a 1,2 b", "2"),
    ],
)
def test_final_answer_is_the_number_that_a_person_would_read(text: str, answer: str) -> None:
    assert final_answer(text) == Decimal(answer)


@pytest.mark.parametrize("text", ["", "no number", "####", "12 apples\n#### ", r"7, so \boxed{x}"])
def test_answer_without_a_number_is_none_and_never_right(text: str) -> None:
    assert final_answer(text) is None
    assert not exact_match(text, text)


def test_numbers_are_compared_by_value_and_not_by_notation() -> None:
    assert exact_match("It is 1,000.0", "#### 1000")
    assert not exact_match("#### 1000.1", "#### 1000")
    assert not exact_match("#### 0.30000000000000004", "#### 0.3")
