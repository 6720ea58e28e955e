"""Which of a solution's own equations hold: `a op b = c` in its text and `<<a*b=c>>` of a calculator.

Arithmetic is exact and done here on numbers and signs alone, in one pass, with bounded lengths. A result that
is written with decimals may be rounded or cut off at its last digit: `10/3=3.33` and `2/3 = 0.66` hold.
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
    r"|(?P<sign>[-−–+*/×÷·()=]|(?<![A-Za-z])[xX](?![A-Za-z]))"
    r"|(?P<skip>[ $€£¥₩\\])"
)
_SPELLINGS = {"−": "-", "–": "-", "×": "*", "·": "*", "x": "*", "X": "*", "÷": "/"}
_CALCULATOR = re.compile(r"<<[^<>]{0,200}>>")
_MAX_DIGITS = 40
_SIGNS = frozenset("+-*/()")
_BINDING = {"+": 1, "-": 1, "*": 2, "/": 2, "negative": 3}

Side = list[str]


def count_true_equations(text: str) -> tuple[int, int]:
    """How many distinct equations of a text hold, and how many there are.

    Only the first 16,384 characters and 200 equations count. A side that is no arithmetic is no equation.
    """
    seen: dict[tuple[str, str], bool] = {}
    for left, right in _equations(text[:MAX_CHARACTERS]):
        key = "".join(left), "".join(right)
        if key not in seen:
            holds = _holds(left, right)
            if holds is not None:
                seen[key] = holds
        if len(seen) >= MAX_EQUATIONS:
            break
    return sum(seen.values()), len(seen)


def evaluate_expression(side: Side) -> Fraction | None:
    """The value of a list of numbers, signs and parentheses, by two stacks; None if it has none."""
    values: list[Fraction] = []
    signs: list[str] = []
    operand_next = True
    for item in side:
        if operand_next and item in ("-", "("):
            signs.append("negative" if item == "-" else item)
        elif item == "(" or operand_next == (item in _SIGNS):
            return None
        elif item not in _SIGNS:
            values.append(_number(item))
            operand_next = False
        elif not _reduce(values, signs, item):
            return None
        else:
            operand_next = item != ")"
    if operand_next or not _reduce(values, signs, "") or signs:
        return None
    return values[0]


def _equations(text: str) -> Iterator[tuple[Side, Side]]:
    """Pairs of neighbouring sides of each chain `a = b = c`, at least one of which has an operation."""
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
        elif match["sign"] == "=":
            sides.append([])
        elif match["sign"]:
            sides[-1].append(_SPELLINGS.get(match["sign"], match["sign"]))
    yield sides


def _holds(left: Side, right: Side) -> bool | None:
    if max(len(left), len(right)) > MAX_TOKENS or any(len(item) > _MAX_DIGITS for item in left + right):
        return None
    value, claimed = evaluate_expression(left), evaluate_expression(right)
    if value is None or claimed is None:
        return None
    return value == claimed or abs(value - claimed) < _last_digit(right if len(right) <= 2 else left)


def _last_digit(side: Side) -> Fraction:
    """What one unit of a number's last decimal is worth; nothing for a whole number or an expression."""
    number = side[-1].rstrip("%")
    if len(side) > 2 or "." not in number:
        return Fraction(0)
    unit = Fraction(1, 10 ** len(number.partition(".")[2]))
    return unit / 100 if side[-1].endswith("%") else unit


def _number(token: str) -> Fraction:
    value = Fraction(token.rstrip("%").replace(",", ""))
    return value / 100 if token.endswith("%") else value


def _reduce(values: list[Fraction], signs: list[str], incoming: str) -> bool:
    """Carry out what binds at least as tightly as the incoming sign, then push it; False if it cannot be."""
    while signs and signs[-1] != "(" and _BINDING[signs[-1]] >= _BINDING.get(incoming, 0):
        sign, last = signs.pop(), values.pop()
        if sign == "negative":
            values.append(-last)
        elif sign == "/" and last == 0:
            return False
        else:
            values.append(_carried_out(values.pop(), sign, last))
    if incoming == ")":
        return bool(signs) and signs.pop() == "("
    if incoming:
        signs.append(incoming)
    return True


def _carried_out(first: Fraction, sign: str, second: Fraction) -> Fraction:
    if sign == "+":
        return first + second
    if sign == "-":
        return first - second
    return first * second if sign == "*" else first / second
