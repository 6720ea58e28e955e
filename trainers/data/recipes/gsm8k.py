r"""Rows for maths reasoning from GSM8K and its kin: solutions to imitate, prompts to explore, and pairs.

A solution is reasoning and a final answer. The answer is told from the last line, be it `#### N` as in GSM8K,
`A: N` or `The answer is: N`, or from the last `\boxed{N}`, and is always written as `#### N`.
GSM8K's calculator annotations `<<48/2=24>>` are kept or stripped.
"""

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import product
from typing import Any, Final, NamedTuple

from pydantic import BaseModel, Field

from trainers.data.fingerprint import fingerprint
from trainers.data.formats import Message, Row

# The spellings of GSM8K, MATH and MetaMathQA; an `answer` beside a `solution` is the bare final answer.
QUESTION_FIELDS: Final = ("question", "problem", "query")
SOLUTION_FIELDS: Final = ("solution", "response", "answer")
ANNOTATION: Final = re.compile(r"<<[^<>\n]*>>")
FINAL: Final = re.compile(r"(?:^\s*A:|####|The answer is:?)\s*(\S.*)$")
BOX: Final = r"\boxed{"


class Annotations(StrEnum):
    """What becomes of the calculator annotations in a solution."""

    kept = "kept"
    stripped = "stripped"


class Solution(NamedTuple):
    """A worked answer whose correctness is known."""

    text: str
    is_correct: bool


@dataclass(frozen=True)
class Problem:
    """A question with solutions by several authors, and the line on which it stands."""

    line: int
    question: str
    solutions: tuple[Solution, ...]


class PairReport(BaseModel):
    """How many pairs came out of how many problems, and why others gave none; it grows as rows are read."""

    problems: int = 0
    pairs: int = 0
    possible_pairs: int = Field(0, description="Pairs without the bound on those of one problem.")
    only_correct: int = Field(0, description="Problems without a wrong solution.")
    only_wrong: int = Field(0, description="Problems without a correct solution.")
    unsolved: int = Field(0, description="Problems without any solution.")
    contradictory: int = Field(0, description="Solutions left out since the same text is graded both ways.")


def sft_rows(
    rows: Iterable[tuple[int, Row]],
    *,
    annotations: Annotations = Annotations.stripped,
    system: str | None = None,
) -> Iterator[Row]:
    """Rows of `messages`: the question, then reasoning and `#### N`; ValueError names a line without."""
    for line, row in rows:
        reasoning, final = _solved(line, row)
        yield {
            "messages": [
                *_prompt(_question(line, row), system),
                {"role": "assistant", "content": _solution(reasoning, final, annotations)},
            ]
        }


def grpo_rows(rows: Iterable[tuple[int, Row]], *, system: str | None = None) -> Iterator[Row]:
    """Rows of `question` and, as `answer`, the bare final answer to judge by; `system` where one is given.

    The shape is that of question and answer, which validation knows: its prompt is the question.
    """
    for line, row in rows:
        _, final = _solved(line, row)
        beginning = {"system": system} if system else {}
        yield beginning | {"question": _question(line, row), "answer": final}


def preference_rows(
    problems: Iterable[Problem],
    report: PairReport,
    *,
    pairs_per_problem: int = 2,
    seed: int = 0,
    annotations: Annotations = Annotations.stripped,
    system: str | None = None,
) -> Iterator[Row]:
    """Rows of `prompt`, `chosen` and `rejected`: a correct and a wrong solution of the same problem.

    At most `pairs_per_problem` pairs are drawn, by the seed and the question, so that a problem keeps its
    pairs wherever it stands. A problem with one kind of solution only gives no pair, and is counted.
    """
    for problem in problems:
        report.problems += 1
        correct, wrong = _graded(problem, annotations, report)
        drawn = _draw(problem.question, correct, wrong, pairs_per_problem, seed)
        report.pairs += len(drawn)
        report.possible_pairs += len(correct) * len(wrong)
        for chosen, rejected in drawn:
            yield {
                "prompt": _prompt(problem.question, system),
                "chosen": [{"role": "assistant", "content": chosen}],
                "rejected": [{"role": "assistant", "content": rejected}],
                "line": problem.line,
            }


def parse_problems(rows: Iterable[tuple[int, Row]]) -> Iterator[Problem]:
    """Problems from rows with a field for each author, or with a list `solutions`, of graded solutions.

    A graded solution is `{"solution": text, "is_correct": bool}`. Raises ValueError naming the line of a row
    without any such field.
    """
    for line, row in rows:
        listed = row.get("solutions")
        graded = listed if isinstance(listed, list) else [v for v in row.values() if _is_meant_as_graded(v)]
        if (listed is None and not graded) or not all(map(_is_graded, graded)):
            raise ValueError(
                f"Line {line}: a solution must be an object with `solution` and `is_correct`, in a list "
                "`solutions` or in a field for each author."
            )
        solutions = tuple(Solution(value["solution"], value["is_correct"]) for value in graded)
        yield Problem(line, _question(line, row), solutions)


def split_solution(text: str) -> tuple[str, str] | None:
    """Reasoning and final answer of a solution; None when no final answer is marked."""
    reasoning, final = text.strip(), ""
    # MetaMathQA marks twice: `#### N`, then `The answer is: N`.
    for _ in range(2):
        if match := FINAL.search(reasoning.rpartition("\n")[2]):
            final = final or match[1].removesuffix(".")
            reasoning = reasoning[: len(reasoning) - len(match[0])].rstrip()
    if final:
        return reasoning, final
    start = text.rfind(BOX)
    if start < 0:
        return None
    content = _braced(text[start + len(BOX) :])
    return (text.strip(), content.strip()) if content and content.strip() else None


def _question(line: int, row: Row) -> str:
    for field in QUESTION_FIELDS:
        if isinstance(row.get(field), str) and row[field].strip():
            return str(row[field]).strip()
    raise ValueError(f"Line {line}: the row needs a question in one of {', '.join(QUESTION_FIELDS)}.")


def _solved(line: int, row: Row) -> tuple[str, str]:
    fields = [field for field in SOLUTION_FIELDS if isinstance(row.get(field), str)]
    if not fields:
        raise ValueError(f"Line {line}: the row needs a solution in one of {', '.join(SOLUTION_FIELDS)}.")
    split = split_solution(row[fields[0]])
    if split is None and len(fields) > 1:
        split = row[fields[0]].strip(), row[fields[-1]].strip()
    if split is None:
        raise ValueError(
            f"Line {line}: `{fields[0]}` marks no final answer: end it with a line `#### N`, or write the "
            r"answer as `\boxed{N}`."
        )
    return split


def _solution(reasoning: str, final: str, annotations: Annotations) -> str:
    return f"{_annotated(reasoning, annotations)}\n#### {final}".lstrip("\n")


def _annotated(reasoning: str, annotations: Annotations) -> str:
    return ANNOTATION.sub("", reasoning) if annotations is Annotations.stripped else reasoning


def _prompt(question: str, system: str | None) -> list[Message]:
    asked = {"role": "user", "content": question}
    return [{"role": "system", "content": system}, asked] if system else [asked]


def _graded(problem: Problem, annotations: Annotations, report: PairReport) -> tuple[list[str], list[str]]:
    """Correct and wrong solutions, each text once, in the order of the problem."""
    written = [(_rewritten(s.text, annotations), s.is_correct) for s in problem.solutions if s.text.strip()]
    correct = dict.fromkeys(text for text, is_correct in written if is_correct)
    wrong = dict.fromkeys(text for text, is_correct in written if not is_correct)
    both = correct.keys() & wrong.keys()
    report.contradictory += len(both)
    for text in both:
        del correct[text], wrong[text]
    report.unsolved += not correct and not wrong
    report.only_correct += bool(correct) and not wrong
    report.only_wrong += bool(wrong) and not correct
    return list(correct), list(wrong)


def _rewritten(text: str, annotations: Annotations) -> str:
    """A solution without a marked answer stays as it is: that may be what is wrong with it."""
    split = split_solution(text)
    return _solution(*split, annotations) if split else _annotated(text.strip(), annotations)


def _draw(
    question: str, correct: list[str], wrong: list[str], count: int, seed: int
) -> list[tuple[str, str]]:
    pairs = list(product(correct, wrong))
    rng = random.Random(fingerprint(question, seed))  # noqa: S311  # Nothing secret.
    return pairs if len(pairs) <= count else rng.sample(pairs, count)


def _is_meant_as_graded(value: Any) -> bool:
    return isinstance(value, dict) and ("solution" in value or "is_correct" in value)


def _is_graded(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("solution"), str)
        and isinstance(value.get("is_correct"), bool)
    )


def _braced(text: str) -> str | None:
    depth = 1
    for index, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if not depth:
            return text[:index]
    return None
