"""Findings in the text of rows, before tokenization."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from trainers.data.faults import FaultCode
from trainers.data.fingerprint import value_digest
from trainers.data.validate import ValidationReport, validate_file
from trainers.preflight.findings import (
    Finding,
    FindingCode,
    FindingLevel,
    FindingPlace,
    PlaceCounter,
    new_finding,
)
from trainers.preflight.texts.answer_checks import (
    BlankCheck,
    GivenAnswerCheck,
    RepetitionCheck,
    UnlikeAnswersCheck,
)
from trainers.preflight.texts.text_checks import MessageCheck
from trainers.rendering.render import PromptCompletion

MAX_FAULTS = 10_000
OUT_OF_ORDER = frozenset(
    {FaultCode.message_order, FaultCode.last_turn_not_assistant, FaultCode.repeated_role}
)
# Other findings report these; `other_format` is not a fault here, because each row is parsed by its format.
REPORTED_ELSEWHERE = OUT_OF_ORDER | {FaultCode.empty_text, FaultCode.other_format}
# A bound on memory: about 100 bytes for each row.
MAX_REMEMBERED = 2_000_000


class RowTexts(NamedTuple):
    """The assistant turns of a row, or its completions, each with its prompt.

    Those that are learned exclude a rejected completion, which may be a refusal or an echo of the prompt.
    """

    completions: Sequence[PromptCompletion]
    learned: Sequence[PromptCompletion]


def check_file(dataset: Path) -> Iterator[Finding]:
    """Yield the findings of the file's validation; of more than 10,000 faults, the first are counted."""
    report = validate_file(dataset, max_faults=MAX_FAULTS)
    yield from _check_order(report)
    others = _places(report, {fault.code for fault in report.faults} - REPORTED_ELSEWHERE)
    if others:
        yield new_finding(
            FindingCode.rows_invalid,
            FindingLevel.warning,
            f"{_count_lines(others)} of {report.row_count} rows have faults that make validation fail.",
            "Correct the named rows; validation lists every fault with its line.",
            places=others,
            count=_count_lines(others),
            rows=report.row_count,
        )


def check_texts(
    rows: Iterable[RowTexts], special_tokens: Sequence[str], *, check_completions: bool
) -> Iterator[Finding]:
    """Yield the findings in the text of rows, in one pass and in bounded memory."""
    checks: list[RowCheck] = [
        DuplicateCheck(),
        SpecialTokenCheck(special_tokens),
        MessageCheck(special_tokens),
    ]
    checks += [BlankCheck()] if check_completions else []
    trained: list[RowCheck] = (
        [RepetitionCheck(), GivenAnswerCheck(), UnlikeAnswersCheck()] if check_completions else []
    )
    for row in rows:
        for check in checks:
            check.add(row.completions)
        for check in trained if row.learned else ():
            check.add(row.learned)
    for check in (*checks, *trained):
        yield from check.findings()


class RowCheck(Protocol):
    """A check of the text of rows."""

    def add(self, pairs: Sequence[PromptCompletion]) -> None:
        """Check the next row."""

    def findings(self) -> Iterator[Finding]:
        """Yield the findings of the rows so far."""


class DuplicateCheck:
    """Counts rows with the messages of an earlier row, whatever their other fields."""

    def __init__(self) -> None:
        self._rows = 0
        self._first_lines: dict[bytes, int] = {}
        self._places = PlaceCounter()

    def add(self, pairs: Sequence[PromptCompletion]) -> None:
        """Check the next row."""
        self._rows += 1
        content = [pairs[-1].prompt, [pair.completion for pair in pairs], pairs[-1].tools]
        key = value_digest(content)
        if (first := self._first_lines.get(key)) is not None:
            self._places.add(pairs[-1].row, f"The row has the content of line {first}.")
        elif len(self._first_lines) < MAX_REMEMBERED:
            self._first_lines[key] = pairs[-1].row

    def findings(self) -> Iterator[Finding]:
        """Yield a warning, because some rows are repeated on purpose."""
        if self._places.count:
            yield new_finding(
                FindingCode.duplicates,
                FindingLevel.warning,
                f"{self._places.count} of {self._rows} rows repeat an earlier row.",
                "Drop them with the filter `duplicates` of `prepare`, unless they should have more weight.",
                places=self._places.first,
                count=self._places.count,
                rows=self._rows,
            )


class SpecialTokenCheck:
    """Counts rows whose text contains special tokens, usually because a chat template already rendered it."""

    def __init__(self, special_tokens: Sequence[str]) -> None:
        self._rows = 0
        self._places = PlaceCounter()
        self._pattern = re.compile("|".join(map(re.escape, special_tokens)) or r"(?!)")

    def add(self, pairs: Sequence[PromptCompletion]) -> None:
        """Check the next row."""
        self._rows += 1
        messages = [message for pair in pairs for message in pair.completion] + pairs[-1].prompt
        for message in messages:
            if found := self._pattern.search(message["content"]):
                start = max(0, found.start() - 30)
                self._places.add(pairs[-1].row, message["content"][start : start + 200])
                break

    def findings(self) -> Iterator[Finding]:
        """Yield a warning, because a text may be about such tokens."""
        if self._places.count:
            yield new_finding(
                FindingCode.special_tokens_in_text,
                FindingLevel.warning,
                f"The text of {self._places.count} of {self._rows} rows contains special tokens of the "
                "model, which are tokenized as turns of a conversation.",
                "Use `messages` with plain text, or remove the special tokens from the text.",
                places=self._places.first,
                count=self._places.count,
                rows=self._rows,
            )


def _check_order(report: ValidationReport) -> Iterator[Finding]:
    places = _places(report, OUT_OF_ORDER)
    if places:
        is_fault = any(fault.code in OUT_OF_ORDER for fault in report.faults)
        yield new_finding(
            FindingCode.roles_out_of_order,
            FindingLevel.error if is_fault else FindingLevel.warning,
            f"In {_count_lines(places)} of {report.row_count} rows the roles of the turns are out of order.",
            "Alternate user and assistant, and end with the assistant.",
            places=places,
            count=_count_lines(places),
            rows=report.row_count,
        )


def _places(report: ValidationReport, codes: Iterable[FaultCode]) -> list[FindingPlace]:
    wanted = set(codes)
    return [(fault.line, fault.message) for fault in report.faults + report.warnings if fault.code in wanted]


def _count_lines(places: Sequence[FindingPlace]) -> int:
    return len({line for line, _ in places})
