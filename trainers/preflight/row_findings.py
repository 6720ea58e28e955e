"""Findings in the rows themselves, before any tokenizer has seen them."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from trainers.data.faults import FaultCode
from trainers.data.fingerprint import fingerprint
from trainers.data.validate import ValidationReport, validate_file
from trainers.preflight.findings import Finding, FindingCode, FindingLevel, FindingPlace, new_finding
from trainers.rendering.render import PromptCompletion

MAX_FAULTS = 10_000
OUT_OF_ORDER = frozenset(
    {FaultCode.message_order, FaultCode.last_turn_not_assistant, FaultCode.repeated_role}
)
# Told by other findings, or nothing to tell: mixed formats are read row by row.
TOLD_ELSEWHERE = OUT_OF_ORDER | {FaultCode.empty_text, FaultCode.other_format}
# A short answer that returns is a label; a long one is a refusal, or a slip of whoever made the rows.
REPEATED_CHARACTERS = 30
REPEATED_ROWS = 10
REPEATED_SHARE = 0.1
# About 100 bytes each.
MAX_REMEMBERED = 2_000_000


def check_file(dataset: Path) -> Iterator[Finding]:
    """Findings of the file's validation; with more than 10,000 faults, the rows of the first are counted."""
    report = validate_file(dataset, max_faults=MAX_FAULTS)
    yield from _out_of_order(report)
    others = _places(report, {fault.code for fault in report.faults} - TOLD_ELSEWHERE)
    if others:
        yield new_finding(
            FindingCode.rows_invalid,
            FindingLevel.warning,
            f"{_lines(others)} of {report.row_count} rows have faults with which a dataset is refused.",
            "Correct the named rows; validation lists every fault with its line.",
            places=others,
            count=_lines(others),
            rows=report.row_count,
        )


def check_texts(
    rows: Iterable[Sequence[PromptCompletion]], special_tokens: Sequence[str], *, are_answers_learned: bool
) -> Iterator[Finding]:
    """Findings in what is said, in one pass; the pairs of a row are its turns, or its two answers."""
    watches: list[Duplicates | Marks | Answers] = [Duplicates(), Marks(special_tokens)]
    if are_answers_learned:
        watches.append(Answers())
    for pairs in rows:
        for watch in watches:
            watch.add(pairs)
    for watch in watches:
        yield from watch.findings()


class Duplicates:
    """Rows that say what an earlier row says, whatever their other fields."""

    def __init__(self) -> None:
        self._rows = 0
        self._first_lines: dict[int, int] = {}
        self._places: list[FindingPlace] = []

    def add(self, pairs: Sequence[PromptCompletion]) -> None:
        """Counts the next row."""
        self._rows += 1
        content = [pairs[-1].prompt, [pair.completion for pair in pairs], pairs[-1].tools]
        key = fingerprint(content)
        if (first := self._first_lines.get(key)) is not None:
            self._places.append((pairs[-1].row, f"The row says what line {first} says."))
        elif len(self._first_lines) < MAX_REMEMBERED:
            self._first_lines[key] = pairs[-1].row

    def findings(self) -> Iterator[Finding]:
        """A warning, since some rows are doubled on purpose."""
        if self._places:
            yield new_finding(
                FindingCode.duplicates,
                FindingLevel.warning,
                f"{len(self._places)} of {self._rows} rows say what an earlier row says.",
                "Drop them with `prepare` and its filter `duplicates`, unless they are meant to weigh more.",
                places=self._places,
                count=len(self._places),
                rows=self._rows,
            )


class Marks:
    """Rows whose text spells special tokens: most often they went through a chat template before."""

    def __init__(self, special_tokens: Sequence[str]) -> None:
        self._rows = 0
        self._places: list[FindingPlace] = []
        self._pattern = re.compile("|".join(map(re.escape, special_tokens)) or r"(?!)")

    def add(self, pairs: Sequence[PromptCompletion]) -> None:
        """Counts the next row."""
        self._rows += 1
        said = [message for pair in pairs for message in pair.completion] + pairs[-1].prompt
        for message in said:
            if met := self._pattern.search(message["content"]):
                self._places.append((pairs[-1].row, message["content"][max(0, met.start() - 30) :]))
                break

    def findings(self) -> Iterator[Finding]:
        """A warning, since a text may speak of such tokens."""
        if self._places:
            yield new_finding(
                FindingCode.special_tokens_in_text,
                FindingLevel.warning,
                f"The text of {len(self._places)} of {self._rows} rows spells special tokens of the model, "
                "which it will take for turns of the chat.",
                "Give the turns as `messages` without a template's marks, or take the marks out.",
                places=self._places,
                count=len(self._places),
                rows=self._rows,
            )


class Answers:
    """Answers that are empty, and one that is given again and again."""

    def __init__(self) -> None:
        self._total = 0
        self._empty: list[FindingPlace] = []
        self._counts: Counter[int] = Counter()
        self._first_lines: dict[int, int] = {}
        self._repeated: dict[int, FindingPlace] = {}

    def add(self, pairs: Sequence[PromptCompletion]) -> None:
        """Counts the next row."""
        for pair in pairs:
            self._total += 1
            answer = pair.completion_text.strip()
            if not answer and not any(message.get("tool_calls") for message in pair.completion):
                self._empty.append((pair.row, pair.prompt[-1]["content"] if pair.prompt else ""))
            if len(answer) >= REPEATED_CHARACTERS:
                self._count(answer, pair.row)

    def findings(self) -> Iterator[Finding]:
        """Empty answers are an error, as they are in an upload."""
        if self._empty:
            yield new_finding(
                FindingCode.completion_empty,
                FindingLevel.error,
                f"{len(self._empty)} of {self._total} answers are empty.",
                "Drop these rows, or write what the model is to say.",
                places=self._empty,
                count=len(self._empty),
                rows=self._total,
            )
        for key, place in self._repeated.items():
            if self._counts[key] >= max(REPEATED_ROWS, REPEATED_SHARE * self._total):
                yield new_finding(
                    FindingCode.completion_repeated,
                    FindingLevel.warning,
                    f"{self._counts[key]} of {self._total} answers are the same text.",
                    "Look whether they are refusals or a slip, and drop most of them.",
                    places=[place],
                    count=self._counts[key],
                    rows=self._total,
                )

    def _count(self, answer: str, line: int) -> None:
        key = hash(answer)
        if key in self._counts or len(self._counts) < MAX_REMEMBERED:
            self._counts[key] += 1
            first = self._first_lines.setdefault(key, line)
            if self._counts[key] == REPEATED_ROWS:
                self._repeated[key] = first, answer


def _out_of_order(report: ValidationReport) -> Iterator[Finding]:
    places = _places(report, OUT_OF_ORDER)
    if places:
        is_fault = any(fault.code in OUT_OF_ORDER for fault in report.faults)
        yield new_finding(
            FindingCode.roles_out_of_order,
            FindingLevel.error if is_fault else FindingLevel.warning,
            f"In {_lines(places)} of {report.row_count} rows the turns stand in an order that no chat has.",
            "Let user and assistant take turns, and end with the assistant.",
            places=places,
            count=_lines(places),
            rows=report.row_count,
        )


def _places(report: ValidationReport, codes: Iterable[FaultCode]) -> list[FindingPlace]:
    wanted = set(codes)
    return [(fault.line, fault.message) for fault in report.faults + report.warnings if fault.code in wanted]


def _lines(places: Sequence[FindingPlace]) -> int:
    return len({line for line, _ in places})
