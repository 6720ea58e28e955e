r"""Rows for maths reasoning from GSM8K and similar data: solutions, prompts and preference pairs.

A solution consists of reasoning and a final answer. The final answer is read from the last line, which is
`#### N` as in GSM8K, `A: N` or `The answer is: N`, or from the last `\boxed{N}`, and is always written as
`#### N`. GSM8K's calculator annotations `<<48/2=24>>` are kept or stripped.
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

# Names in GSM8K, MATH and MetaMathQA. An `answer` next to a `solution` is the final answer alone.
QUESTION_FIELDS: Final = ("question", "problem", "query")
SOLUTION_FIELDS: Final = ("solution", "response", "answer")
ANNOTATION: Final = re.compile(r"<<[^<>\n]*>>")
FINAL: Final = re.compile(r"(?:^\s*A:|####|The answer is:?)\s*(\S.*)$")
BOX: Final = r"\boxed{"


class Annotations(StrEnum):
    """Treatment of calculator annotations in a solution."""

    kept = "kept"
    stripped = "stripped"


class Solution(NamedTuple):
    """A graded solution."""

    text: str
    is_correct: bool


@dataclass(frozen=True)
class Problem:
    """A question with solutions by several authors, and its line in the file."""

    line: int
    question: str
    solutions: tuple[Solution, ...]


class PairReport(BaseModel):
    """Counts of problems and pairs, and why problems gave no pair; updated as rows are read."""

    problems: int = Field(0, description="Number of problems.")
    pairs: int = Field(0, description="Number of pairs.")
    possible_pairs: int = Field(0, description="Number of pairs without the maximum per problem.")
    only_correct: int = Field(0, description="Number of problems without a wrong solution.")
    only_wrong: int = Field(0, description="Number of problems without a correct solution.")
    unsolved: int = Field(0, description="Number of problems without any solution.")
    contradictory: int = Field(
        0, description="Number of solutions excluded because the same text is graded both ways."
    )


def sft_rows(
    rows: Iterable[tuple[int, Row]],
    *,
    annotations: Annotations = Annotations.stripped,
    system: str | None = None,
) -> Iterator[Row]:
    """Yield rows of `messages`: question, reasoning and `#### N`; raises ValueError naming the line."""
    for line, row in rows:
        reasoning, final = _read_solution(line, row)
        yield {
            "messages": [
                *_prompt(_question(line, row), system),
                {"role": "assistant", "content": _format_solution(reasoning, final, annotations)},
            ]
        }


def grpo_rows(rows: Iterable[tuple[int, Row]], *, system: str | None = None) -> Iterator[Row]:
    """Yield rows of `question` and, as `answer`, the final answer alone; with `system` if it is set.

    The rows have the format `question_answer`, whose prompt is the question.
    """
    for line, row in rows:
        _, final = _read_solution(line, row)
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
    """Yield rows of `prompt`, `chosen` and `rejected`: a correct and a wrong solution of the same problem.

    At most `pairs_per_problem` pairs are drawn, by the seed and the question, so that the pairs of a problem
    do not depend on its position. A problem without correct or without wrong solutions yields no pair, and is
    counted.
    """
    for problem in problems:
        report.problems += 1
        correct, wrong = _split_by_grade(problem, annotations, report)
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
    """Yield problems from rows with graded solutions, in a field for each author or in a list `solutions`.

    A graded solution is `{"solution": text, "is_correct": bool}`. Raises ValueError naming the line of a row
    without any.
    """
    for line, row in rows:
        listed = row.get("solutions")
        graded = listed if isinstance(listed, list) else [v for v in row.values() if _has_grade_fields(v)]
        if (listed is None and not graded) or not all(map(_is_graded, graded)):
            raise ValueError(
                f"Line {line}: a solution must be an object with `solution` and `is_correct`, in a list "
                "`solutions` or in a field for each author."
            )
        solutions = tuple(Solution(value["solution"], value["is_correct"]) for value in graded)
        yield Problem(line, _question(line, row), solutions)


def split_solution(text: str) -> tuple[str, str] | None:
    """Return reasoning and final answer of a solution, or None if no final answer is marked."""
    reasoning, final = text.strip(), ""
    # MetaMathQA has two marks: `#### N`, then `The answer is: N`.
    for _ in range(2):
        if match := FINAL.search(reasoning.rpartition("\n")[2]):
            final = final or match[1].removesuffix(".")
            reasoning = reasoning[: len(reasoning) - len(match[0])].rstrip()
    if final:
        return reasoning, final
    start = text.rfind(BOX)
    if start < 0:
        return None
    content = _read_braces(text[start + len(BOX) :])
    return (text.strip(), content.strip()) if content and content.strip() else None


def _question(line: int, row: Row) -> str:
    for field in QUESTION_FIELDS:
        if isinstance(row.get(field), str) and row[field].strip():
            return str(row[field]).strip()
    raise ValueError(
        f"Line {line}: the row needs a question in one of the fields {', '.join(QUESTION_FIELDS)}."
    )


def _read_solution(line: int, row: Row) -> tuple[str, str]:
    fields = [field for field in SOLUTION_FIELDS if isinstance(row.get(field), str)]
    if not fields:
        raise ValueError(
            f"Line {line}: the row needs a solution in one of the fields {', '.join(SOLUTION_FIELDS)}."
        )
    split = split_solution(row[fields[0]])
    if split is None and len(fields) > 1:
        split = row[fields[0]].strip(), row[fields[-1]].strip()
    if split is None:
        raise ValueError(
            f"Line {line}: `{fields[0]}` contains no final answer: end it with a line `#### N`, or write the "
            r"answer as `\boxed{N}`."
        )
    return split


def _format_solution(reasoning: str, final: str, annotations: Annotations) -> str:
    return f"{_treat_annotations(reasoning, annotations)}\n#### {final}".lstrip("\n")


def _treat_annotations(reasoning: str, annotations: Annotations) -> str:
    return ANNOTATION.sub("", reasoning) if annotations is Annotations.stripped else reasoning


def _prompt(question: str, system: str | None) -> list[Message]:
    asked = {"role": "user", "content": question}
    return [{"role": "system", "content": system}, asked] if system else [asked]


def _split_by_grade(
    problem: Problem, annotations: Annotations, report: PairReport
) -> tuple[list[str], list[str]]:
    """Return correct and wrong solutions without duplicates, in the order of the problem."""
    written = [(_rewrite(s.text, annotations), s.is_correct) for s in problem.solutions if s.text.strip()]
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


def _rewrite(text: str, annotations: Annotations) -> str:
    # A solution without a marked answer stays unchanged: the missing answer may be its fault.
    split = split_solution(text)
    return _format_solution(*split, annotations) if split else _treat_annotations(text.strip(), annotations)


def _draw(
    question: str, correct: list[str], wrong: list[str], count: int, seed: int
) -> list[tuple[str, str]]:
    pairs = list(product(correct, wrong))
    rng = random.Random(fingerprint(question, seed))  # noqa: S311  # Nothing secret.
    return pairs if len(pairs) <= count else rng.sample(pairs, count)


def _has_grade_fields(value: Any) -> bool:
    return isinstance(value, dict) and ("solution" in value or "is_correct" in value)


def _is_graded(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("solution"), str)
        and isinstance(value.get("is_correct"), bool)
    )


def _read_braces(text: str) -> str | None:
    depth = 1
    for index, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if not depth:
            return text[:index]
    return None
