"""Verification of the equations in a solution: `a op b = c` in the text and annotations `<<a*b=c>>`.

Arithmetic is exact, on numbers and operators alone, in one pass with bounded lengths. A result with decimals
may be rounded or truncated in its last digit: `10/3=3.33` and `2/3 = 0.66` are true.
"""

import re
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise

MAX_CHARACTERS = 16_384
MAX_EQUATIONS = 200
MAX_TOKENS = 40

_TOKEN = re.compile(
    r"(?P<number>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]++)(?:\.[0-9]++)?%?|\.[0-9]++%?)"
    r"|(?P<operator>[-−–+*/×÷·()=]|(?<![A-Za-z])[xX](?![A-Za-z]))"
    r"|(?P<skip>[ $€£¥₩\\])"
)
_SPELLINGS = {"−": "-", "–": "-", "×": "*", "·": "*", "x": "*", "X": "*", "÷": "/"}
_CALCULATOR = re.compile(r"<<[^<>]{0,200}>>")
_MAX_DIGITS = 40
_OPERATORS = frozenset("+-*/()")
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2, "negative": 3}

Side = list[str]


def count_true_equations(text: str) -> tuple[int, int]:
    """Return the number of different true equations in a text, and the number of all.

    Only the first 16,384 characters and 200 equations are read. If a side is not arithmetic, it is not an
    equation.
    """
    seen: dict[tuple[str, str], bool] = {}
    for left, right in _equations(text[:MAX_CHARACTERS]):
        key = "".join(left), "".join(right)
        if key not in seen:
            is_true = _is_true(left, right)
            if is_true is not None:
                seen[key] = is_true
        if len(seen) >= MAX_EQUATIONS:
            break
    return sum(seen.values()), len(seen)


def evaluate_expression(side: Side) -> Fraction | None:
    """Return the value of a list of numbers, operators and parentheses, by two stacks; None if invalid."""
    values: list[Fraction] = []
    operators: list[str] = []
    operand_next = True
    for item in side:
        if operand_next and item in ("-", "("):
            operators.append("negative" if item == "-" else item)
        elif item == "(" or operand_next == (item in _OPERATORS):
            return None
        elif item not in _OPERATORS:
            values.append(_number(item))
            operand_next = False
        elif not _reduce(values, operators, item):
            return None
        else:
            operand_next = item != ")"
    if operand_next or not _reduce(values, operators, "") or operators:
        return None
    return values[0]


def _equations(text: str) -> Iterator[tuple[Side, Side]]:
    # Adjacent sides of each chain `a = b = c`, at least one of which has an operator.
    calculators = " ; ".join(match.group()[2:-2] for match in _CALCULATOR.finditer(text))
    for sides in _chains(f"{calculators} ; {_CALCULATOR.sub('', text)}"):
        for left, right in pairwise(sides):
            if max(len(left), len(right)) > 2:
                yield left, right


def _chains(text: str) -> Iterator[list[Side]]:
    sides: list[Side] = [[]]
    position = 0
    for match in _TOKEN.finditer(text):
        if match.start() != position:
            yield sides
            sides = [[]]
        position = match.end()
        if match["number"]:
            sides[-1].append(match["number"])
        elif match["operator"] == "=":
            sides.append([])
        elif match["operator"]:
            sides[-1].append(_SPELLINGS.get(match["operator"], match["operator"]))
    yield sides


def _is_true(left: Side, right: Side) -> bool | None:
    if max(len(left), len(right)) > MAX_TOKENS or any(len(item) > _MAX_DIGITS for item in left + right):
        return None
    value, claimed = evaluate_expression(left), evaluate_expression(right)
    if value is None or claimed is None:
        return None
    return value == claimed or abs(value - claimed) < _rounding_unit(right if len(right) <= 2 else left)


def _rounding_unit(side: Side) -> Fraction:
    # The unit of a number's last decimal; 0 for an integer or an expression.
    number = side[-1].rstrip("%")
    if len(side) > 2 or "." not in number:
        return Fraction(0)
    unit = Fraction(1, 10 ** len(number.partition(".")[2]))
    return unit / 100 if side[-1].endswith("%") else unit


def _number(token: str) -> Fraction:
    value = Fraction(token.rstrip("%").replace(",", ""))
    return value / 100 if token.endswith("%") else value


def _reduce(values: list[Fraction], operators: list[str], incoming: str) -> bool:
    """Apply the operators of at least the incoming precedence, then push it; return False if invalid."""
    while operators and operators[-1] != "(" and _PRECEDENCE[operators[-1]] >= _PRECEDENCE.get(incoming, 0):
        operator, last = operators.pop(), values.pop()
        if operator == "negative":
            values.append(-last)
        elif operator == "/" and last == 0:
            return False
        else:
            values.append(_apply(values.pop(), operator, last))
    if incoming == ")":
        return bool(operators) and operators.pop() == "("
    if incoming:
        operators.append(incoming)
    return True


def _apply(first: Fraction, operator: str, second: Fraction) -> Fraction:
    if operator == "+":
        return first + second
    if operator == "-":
        return first - second
    return first * second if operator == "*" else first / second
