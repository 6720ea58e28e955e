"""Word problems in GSM8K's form, generated: small enough for a model of 0.1 million parameters to learn.

Number combinations are split by a hash, whatever sentence they stand in, so that no combination of a
held-out problem ever occurs in a training problem.
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
LARGEST: Final = 99
HELD_OUT_SHARE: Final = 4  # One combination in four is held out.


class ProblemSplit(StrEnum):
    """Which problems a row may come from."""

    train = "train"
    held_out = "held_out"


@dataclass(frozen=True)
class ProblemTemplate:
    """A sentence with its numbers' ranges and the operators that combine them from left to right."""

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
    """Rows of `question` and `answer`, which ends in `#### N`; the same arguments give the same rows.

    All combinations of a split are used before one is used again. `wrong_share` of the answers follow a
    wrong operator: a corpus for a base model that knows the form and not yet the way.
    """
    rng = random.Random(f"{split}-{seed}")  # noqa: S311  # Nothing secret.
    combinations = list(_combinations(split))
    rows: list[dict[str, str]] = []
    while len(rows) < count:
        rng.shuffle(combinations)
        rows += [
            _row(shape, numbers, rng, rng.random() < wrong_share)
            for shape, numbers in combinations[: count - len(rows)]
        ]
    return rows


def list_equations() -> list[str]:
    """Every equation that an answer may contain, right or wrong in its problem, each true in itself."""
    lines = {
        line
        for split in ProblemSplit
        for shape, numbers in _combinations(split)
        for operators in (shape.operators, *_wrong_operators(shape, numbers))
        for line in _lines(operators, numbers)
    }
    return sorted(lines)


@cache
def _combinations(split: ProblemSplit) -> tuple[tuple[ProblemTemplate, tuple[int, ...]], ...]:
    return tuple(
        (shape, numbers)
        for shape in TEMPLATES
        for numbers in product(*shape.ranges)
        if _is_held_out(numbers) == (split is ProblemSplit.held_out)
        and _stays_in_range(shape.operators, numbers)
    )


def _is_held_out(numbers: tuple[int, ...]) -> bool:
    return hashlib.sha256(repr(numbers).encode()).digest()[0] % HELD_OUT_SHARE == 0


def _row(shape: ProblemTemplate, numbers: tuple[int, ...], rng: random.Random, wrong: bool) -> dict[str, str]:
    who, friend = rng.sample(NAMES, 2)
    question = shape.text.format(*numbers, who=who, friend=friend, what=rng.choice(THINGS))
    mistakes = _wrong_operators(shape, numbers) if wrong else []
    operators = rng.choice(mistakes) if mistakes else shape.operators
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
    return all(1 <= result <= LARGEST for result in _results(operators, numbers))


def _wrong_operators(shape: ProblemTemplate, numbers: tuple[int, ...]) -> list[str]:
    candidates = ("".join(operators) for operators in product("+-*", repeat=len(shape.operators)))
    return [
        operators
        for operators in candidates
        if operators != shape.operators and _stays_in_range(operators, numbers)
    ]
