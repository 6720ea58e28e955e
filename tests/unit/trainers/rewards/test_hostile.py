"""Hostile text takes milliseconds to score."""

import random
import time
from collections.abc import Callable

import pytest

from trainers.configs.rewards import AnswerForm
from trainers.metrics.maths.final_answer import judge_answer
from trainers.rewards.answer_form import find_form_fault
from trainers.rewards.equations import count_true_equations

SIZE = 1_000_000
SECONDS = 0.5  # Measured: under 30 ms for each. What backtracks takes minutes.
HOSTILE = {
    "boxes": r"\boxed{" * (SIZE // 7),
    "open_box": r"\boxed{" + "{" * SIZE,
    "box_of_digits": r"\boxed{" + "9" * SIZE + "}",
    "parentheses": "(" * SIZE,
    "nested_calculator": "<<" + "(" * SIZE + "1" + ")" * SIZE + "=1>>",
    "open_calculators": "<<" * (SIZE // 2),
    "huge_exponent": "#### 1e999999999",
    "long_exponent": "1e" + "9" * SIZE,
    "huge_power": "#### 9^999999999",
    "tower": "9^9" * (SIZE // 3),
    "digits": "9" * SIZE,
    "comma_groups": "1" + ",000" * (SIZE // 4),
    "dot_groups": "1" + ".234" * (SIZE // 4),
    "near_dot_groups": ("1" + ".234" * 9 + "5") * (SIZE // 40),
    "hashes": "#" * SIZE,
    "marks": "#### " * (SIZE // 5),
    "mark_and_spaces": "#### x" + " " * SIZE,
    "cues": "the answer is " * (SIZE // 14),
    "near_cues": "answer" * (SIZE // 6),
    "equations": "1+1=2 " * (SIZE // 6),
    "equals": "1=" * (SIZE // 2),
    "sum": "1+" * (SIZE // 2),
    "fractions": r"\frac{" * (SIZE // 6),
    "half_fractions": r"\frac{1}" * (SIZE // 8),
    "slashes": "1/" * (SIZE // 2),
    "mixed": "1 1/" * (SIZE // 4),
    "minus": "-" * SIZE,
    "clocks": "1:23:" * (SIZE // 5),
    "unicode_digits": "٣" * SIZE,
    "superscripts": "²" * SIZE,
    "vulgar_fractions": "½" * SIZE,
    "wide_digits": "９" * SIZE,
    "nul": "\0" * SIZE,
    "surrogates": "\ud800" * SIZE,
}


def _judge(text: str) -> object:
    return judge_answer(text, "#### 8"), judge_answer("8", text)


def _forms(text: str) -> object:
    return [find_form_fault(text, form) for form in AnswerForm]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("read", [_judge, _forms, count_true_equations])
def test_hostile_text_is_read_within_the_time_bound(name: str, read: Callable[[str], object]) -> None:
    started = time.process_time()
    read(HOSTILE[name])
    assert time.process_time() - started < SECONDS


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_never_right(name: str) -> None:
    assert not judge_answer(HOSTILE[name], "#### 8").correct


def test_random_pieces_of_syntax_never_raise() -> None:
    dice = random.Random(11)
    words = ["####", "\\boxed{", "\\frac{", "<<", ">>", "½", "٣", "−", "\x00", "1e9", "10^", "pm", "billion"]
    pieces = [*"0123456789.,:/^%$-+*=()[]{}<> \\exn\n", "answer is ", *words]
    for _ in range(2_000):
        text = "".join(dice.choices(pieces, k=dice.randint(0, 40)))
        held, count = count_true_equations(text)
        assert 0 <= held <= count
        assert judge_answer(text, text).correct is (judge_answer(text, text).answer is not None)
        _forms(text)


def test_what_a_model_writes_is_never_run() -> None:
    text = "<<__import__('os').abort()=1>>\n#### __import__('os').abort() or 2"
    assert not judge_answer(text, "#### 1").correct
    assert count_true_equations(text) == (0, 0)
