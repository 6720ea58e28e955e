"""Generated word problems in the form of GSM8K, easy enough for a model of 0.1 million parameters.

Combinations of numbers are split by a hash, independent of the sentence, so that no combination in a held-out
problem occurs in a training problem.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from itertools import product
from typing import Final

NAMES: Final = (
    *("Ada", "Bo", "Cleo", "Dan", "Elif", "Finn", "Gus", "Hana"),
    *("Ines", "Jun", "Kofi", "Lena", "Mo", "Nils", "Olga", "Pia"),
)
THINGS: Final = (
    *("plums", "kites", "marbles", "stones", "cups", "hats"),
    *("keys", "seeds", "pins", "rings", "figs", "nails"),
)
MAX_NUMBER: Final = 99
HELD_OUT_PERIOD: Final = 4  # One combination in four is held out.


class ProblemSplit(StrEnum):
    """Part of the problems."""

    train = "train"
    held_out = "held_out"


@dataclass(frozen=True)
class ProblemTemplate:
    """A sentence, the ranges of its numbers, and the operators that combine them from left to right."""

    text: str
    operators: str
    ranges: tuple[range, ...]


SMALL: Final = range(2, 12)
TEMPLATES: Final = (
    ProblemTemplate(
        "{who} has {0} {what} and picks {1} more. How many {what} does {who} have?", "+", (SMALL, SMALL)
    ),
    ProblemTemplate(
        "{who} owns {0} {what}. {friend} brings {1} {what}. How many {what} are there?", "+", (SMALL, SMALL)
    ),
    ProblemTemplate(
        "A shelf holds {0} {what} and a bag holds {1} {what}. How many {what} are there?", "+", (SMALL, SMALL)
    ),
    ProblemTemplate(
        "{who} had {0} {what} and sold {1}. How many {what} remain?", "-", (range(5, 16), range(2, 10))
    ),
    ProblemTemplate(
        "{who} had {0} {what} , but {1} of them broke. How many {what} remain?",
        "-",
        (range(5, 16), range(2, 10)),
    ),
    ProblemTemplate(
        "{who} has {0} {what} , {friend} only {1}. How many fewer {what} does {friend} have?",
        "-",
        (range(5, 16), range(2, 10)),
    ),
    ProblemTemplate(
        "{who} fills {0} bags with {1} {what} each. How many {what} are there?",
        "*",
        (range(2, 8), range(2, 8)),
    ),
    ProblemTemplate(
        "{who} makes {0} {what} a day for {1} days. How many {what} are there?",
        "*",
        (range(2, 8), range(2, 8)),
    ),
    ProblemTemplate(
        "{who} has {0} {what} , picks {1} more and gives {friend} {2}. How many {what} remain?",
        "+-",
        (range(3, 10), range(2, 7), range(2, 7)),
    ),
    ProblemTemplate(
        "{who} had {0} {what} , sold {1} and then made {2}. How many {what} does {who} have?",
        "-+",
        (range(6, 13), range(2, 6), range(2, 7)),
    ),
    ProblemTemplate(
        "{who} fills {0} bags with {1} {what} each and has {2} more. How many {what} are there?",
        "*+",
        (range(2, 6), range(2, 6), range(2, 7)),
    ),
    ProblemTemplate(
        "{who} fills {0} bags with {1} {what} each and sells {2}. How many {what} remain?",
        "*-",
        (range(2, 6), range(3, 7), range(2, 6)),
    ),
)


def generate_problems(
    count: int, split: ProblemSplit, seed: int, wrong_share: float = 0.0
) -> list[dict[str, str]]:
    """Return rows of `question` and `answer`, which ends in `#### N`; equal arguments give equal rows.

    Every combination of a split is used before one is repeated. A share `wrong_share` of the answers uses a
    wrong operator: training data for a base model that has learned the form, but not yet the method.
    """
    rng = random.Random(f"{split}-{seed}")  # noqa: S311  # Not for security.
    combinations = list(_combinations(split))
    rows: list[dict[str, str]] = []
    while len(rows) < count:
        rng.shuffle(combinations)
        rows += [
            _row(template, numbers, rng, rng.random() < wrong_share)
            for template, numbers in combinations[: count - len(rows)]
        ]
    return rows


def list_equations() -> list[str]:
    """Return every equation that can occur in an answer; each is true, even if its answer is wrong."""
    lines = {
        line
        for split in ProblemSplit
        for template, numbers in _combinations(split)
        for operators in (template.operators, *_wrong_operators(template, numbers))
        for line in _lines(operators, numbers)
    }
    return sorted(lines)


@cache
def _combinations(split: ProblemSplit) -> tuple[tuple[ProblemTemplate, tuple[int, ...]], ...]:
    return tuple(
        (template, numbers)
        for template in TEMPLATES
        for numbers in product(*template.ranges)
        if _is_held_out(numbers) == (split is ProblemSplit.held_out)
        and _stays_in_range(template.operators, numbers)
    )


def _is_held_out(numbers: tuple[int, ...]) -> bool:
    return hashlib.sha256(repr(numbers).encode()).digest()[0] % HELD_OUT_PERIOD == 0


def _row(
    template: ProblemTemplate, numbers: tuple[int, ...], rng: random.Random, wrong: bool
) -> dict[str, str]:
    who, friend = rng.sample(NAMES, 2)
    question = template.text.format(*numbers, who=who, friend=friend, what=rng.choice(THINGS))
    mistakes = _wrong_operators(template, numbers) if wrong else []
    operators = rng.choice(mistakes) if mistakes else template.operators
    *_, result = _results(operators, numbers)
    return {
        "question": question,
        "answer": f"So {'. Then '.join(_lines(operators, numbers))}.\n#### {result}",
    }


def _lines(operators: str, numbers: tuple[int, ...]) -> list[str]:
    lines, left = [], numbers[0]
    for operator, right, result in zip(operators, numbers[1:], _results(operators, numbers), strict=True):
        lines.append(f"{left} {operator} {right} = {result}")
        left = result
    return lines


def _results(operators: str, numbers: tuple[int, ...]) -> Iterator[int]:
    value = numbers[0]
    for operator, number in zip(operators, numbers[1:], strict=True):
        value = {"+": value + number, "-": value - number, "*": value * number}[operator]
        yield value


def _stays_in_range(operators: str, numbers: tuple[int, ...]) -> bool:
    return all(1 <= result <= MAX_NUMBER for result in _results(operators, numbers))


def _wrong_operators(template: ProblemTemplate, numbers: tuple[int, ...]) -> list[str]:
    candidates = ("".join(operators) for operators in product("+-*", repeat=len(template.operators)))
    return [
        operators
        for operators in candidates
        if operators != template.operators and _stays_in_range(operators, numbers)
    ]
