"""Answers in tags, JSON and Korean units, and texts that give more than one answer."""

import time

import pytest

from trainers.metrics.maths.final_answer import exact_match, final_answer

SINGLE = [
    ("<answer>42</answer> (3 steps)", 42),
    ("<think>7 or 8?</think><answer>The total is 3 + 4 = 7</answer> 9", 7),
    (r"<answer>\boxed{7}</answer> after 3 steps", 7),
    ("<answer>\n#### 7\n</answer>", 7),
    ("<answer>7 apples", 7),
    ('{"answer": 42, "steps": 3}', 42),
    ('{"steps": 3, "final_answer": "42"}', 42),
    ("3만 5천 원", 35_000),
    ("답: 3만", 30_000),
    ("정답은 3만5000원입니다. 2단계", 35_000),
    ("1만 2000원", 12_000),
    ("1억 2,000만 원", 120_000_000),
    ("2천3백50", 2350),
    ("3.5만", 35_000),
    ("5천만 명", 50_000_000),
    ("사과 3조각", 3),
    ("25k", 25_000),
    ("$2.5M", 2_500_000),
    ("10 km", 10),
    ("Question: 5 apples\nA: 6", 6),
    ("The answer is 18, 3 of which are red.", 18),
    ("The answer is 25 to the nearest 5.", 25),
    ("The answer is between 3 and 4, so 3.5 rounds to 4", 4),
    ("10k-3k = 7k", 7_000),
    ("He buys 5 apples and 6 pears, so 11", 11),
]
SEVERAL = [
    "5 to 10",
    "5-10",
    "5~10",
    "about 5 to 10 minutes.",
    "5 apples, 6 pears",
    "5, 6 and 7",
    "3 or 4",
    "between 3 and 4",
    "either 3 or 4 apples",
    "3k-4k",
    "5%-10%",
    "3 또는 4",
    "5개와 6개",
]


@pytest.mark.parametrize(("text", "answer"), SINGLE)
def test_a_single_answer_is_read_in_any_of_these_forms(text: str, answer: int) -> None:
    assert final_answer(text) == answer
    assert exact_match(text, f"#### {answer}")


@pytest.mark.parametrize("text", SEVERAL)
@pytest.mark.parametrize(
    "form",
    ["{}", "It is 5.\n{}", "#### {}", "The answer is {}", "<answer>{}</answer>", "답: {}"],
)
def test_a_range_a_list_or_alternatives_are_no_answer_in_any_place(text: str, form: str) -> None:
    assert final_answer(form.format(text)) is None


@pytest.mark.parametrize(
    "text",
    ["A: 3 B: 4", "(a) 3, (b) 4", '{"answer": [3, 4]}', '{"answer": null, "steps": 3}', r"\boxed{3 or 4}"],
)
def test_labelled_answers_and_json_without_a_number_are_no_answer(text: str) -> None:
    assert final_answer(text) is None


@pytest.mark.parametrize(
    "part", ["5 apples, ", "5 to ", "3만 ", "5천", "A: 3 ", "a b c, ", "<answer>", '"answer": ', "5개와 "]
)
def test_hostile_repetitions_take_no_longer_than_long_text(part: str) -> None:
    start = time.process_time()
    final_answer(part * (200_000 // len(part)))
    assert time.process_time() - start < 0.5
