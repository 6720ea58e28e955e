"""Detection of final answers, and their comparison with a reference."""

from fractions import Fraction

import pytest

from trainers.metrics.maths.final_answer import exact_match, final_answer, find_answer, judge_answer

PLACES = [
    ("#### Step 1: add\n3 + 4 = 7\n#### 7", 7),
    ("#### Step 1: add 3 apples\nSo \\boxed{7}", 7),
    ("#### Solution\nThe answer is 7, as 3 + 4.", 7),
    ("#### Solution\n3 + 4 = 7", 7),
    ("#### x = 18", 18),
    ("#### about $18", 18),
    (r"#### \boxed{18}", 18),
    ("#### 18\n\nQuestion: 5 apples\n#### 5", 18),
    (r"\boxed{x = 3 + 4 = 7}", 7),
    (r"\boxed{\text{Total: } 12 \text{ apples}}", 12),
    (r"\boxed{\boxed{7}}", 7),
    (r"\boxed{\{\frac{1}{2}\}}", Fraction(1, 2)),
    ("**Answer:** 18 (3 boxes of 6)", 18),
    ("The answer is 3 + 4 = 7, not 8.", 7),
    ("The answer is 7 because 3 + 4 = 7 and 9 > 7.", 7),
    ("The answer is 6. Wait, the final answer is **8**. I used 2 steps.", 8),
    (r"The answer is \(18\). Checked 3 times.", 18),
    ("The answer is the sum of 3 and 4, so 7", 7),
    ("정답은 약 18개입니다. 3단계", 18),
]


@pytest.mark.parametrize(("text", "answer"), PLACES)
def test_answer_is_found_where_a_person_looks_for_it(text: str, answer: int) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    "content",
    [
        "(1, 2)",
        "(1,2)",
        "3, 5",
        "3; 5",
        r"3 \text{ or } 5",
        "[0, 1)",
        "x=5, y=3",
        "3+4",
        r"2 \cdot \sqrt{3}",
        "3:2",
        "",
    ],
)
def test_a_box_with_more_than_one_plain_number_is_not_an_answer(content: str) -> None:
    assert final_answer(rf"It is 7, so \boxed{{{content}}}") is None


def test_wrong_format_does_not_hide_behind_an_earlier_right_number() -> None:
    assert not exact_match("It is 7.\n#### ", "#### 7")
    assert not exact_match(r"It is 7. \boxed{}", "#### 7")


def test_tolerance_is_absolute_or_relative_to_the_reference() -> None:
    assert not judge_answer("0.333", "1/3").correct
    assert judge_answer("0.333", "1/3", absolute=Fraction("0.001")).correct
    assert not judge_answer("0.333", "1/3", absolute=Fraction("0.0003")).correct
    assert judge_answer("-99", "-100", relative=Fraction("0.01")).correct
    assert not judge_answer("-98.9", "-100", relative=Fraction("0.01")).correct
    assert not judge_answer("0.001", "0", relative=Fraction("0.5")).correct


def test_a_judgement_names_both_numbers_and_the_reason() -> None:
    judgement = judge_answer("The answer is $1,200.", "#### 1300")
    assert (judgement.correct, judgement.reason) == (
        False,
        'The answer 1,200 (after "the answer is") differs from the reference 1300.',
    )
    completion_without = judge_answer("none", "#### 3").reason
    assert completion_without == "The completion has no final answer: it contains no number."
    assert judge_answer("3", "none").reason == "The reference has no final answer: it contains no number."


def test_last_number_is_read_from_the_end_of_a_long_text() -> None:
    assert find_answer("1 apple. " * 1_000_000 + "So 12 apples").number is not None
    assert final_answer("1 apple. " * 100_000 + "So 12 apples") == 12
