"""True and false equations in a solution."""

import random
from fractions import Fraction

import pytest

from trainers.rewards.equations import count_true_equations, evaluate_expression


@pytest.mark.parametrize(
    ("text", "held", "count"),
    [
        ("She makes 9 * 2 = $<<9*2=18>>18 every day.", 1, 1),
        ("16 - 3 - 4 = 9 eggs, then 9 x 2 = 17.", 1, 2),
        ("<<16-3-4=9>> and <<9*2=17>>", 1, 2),
        ("$1,000 + $500.50 = $1,500.50.", 1, 1),
        ("(2 + 3) × 4 = 20 = 10 * 2 = 21", 2, 3),
        ("2 + 3 * 4 = 14\n-2 * -3 = 6\n-(1 + 1) ÷ 4 = -0.5", 3, 3),
        ("10/3 = 3.33, 2/3=0.66, 2/3=0.67, 2/3=0.6, 10/3=3", 4, 5),
        ("20% * 50 = 10 and 1/4 = 25%", 2, 2),
        ("1 + 1 = 2. 1 + 1 = 2. 1+1=2. 1 + 1 = 3.", 1, 2),
        ("x = 5, 5 = 5, 3 + = 4, 2(3) = 6, 4/0 = 4, ) + ( = 1, 1 + 2 =", 0, 0),
        ("no equation", 0, 0),
    ],
)
def test_equations_that_hold_are_counted_once_each(text: str, held: int, count: int) -> None:
    assert count_true_equations(text) == (held, count)


def test_arithmetic_keeps_precedence_and_order_in_random_expressions() -> None:
    dice = random.Random(5)
    for _ in range(500):
        side, value = _expression(dice, depth=3)
        assert evaluate_expression(side) == value


def test_a_side_that_is_too_long_is_not_an_equation() -> None:
    assert count_true_equations("1" + "+1" * 19 + " = 20") == (1, 1)
    assert count_true_equations("1" + "+1" * 20 + " = 21") == (0, 0)
    assert count_true_equations("1 + 1 = 2\n" * 10_000 + "1 + 1 = 3") == (1, 1)


def _expression(dice: random.Random, depth: int) -> tuple[list[str], Fraction]:
    """Return a fully bracketed expression, or a sum of products without brackets, and its value."""
    if depth == 0:
        number = dice.randint(1, 99)
        return [str(number)], Fraction(number)
    if dice.random() < 0.3:
        a, b, c = (dice.randint(1, 99) for _ in range(3))
        return f"( {a} - {b} * {c} - {a} / {b} )".split(), a - b * c - Fraction(a, b)
    left, first = _expression(dice, depth - 1)
    right, second = _expression(dice, depth - 1)
    values = {"+": first + second, "-": first - second, "*": first * second}
    if second:
        values["/"] = first / second
    sign = dice.choice(list(values))
    return ["-", "(", *left, sign, *right, ")"], -values[sign]
