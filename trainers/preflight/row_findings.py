"""Findings in the text of rows, before tokenization."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from trainers.data.faults import FaultCode
from trainers.data.fingerprint import value_digest
from trainers.data.validate import ValidationReport, validate_file
from trainers.preflight.findings import Finding, FindingCode, FindingLevel, FindingPlace, new_finding
from trainers.rendering.render import PromptCompletion

MAX_FAULTS = 10_000
OUT_OF_ORDER = frozenset(
    {FaultCode.message_order, FaultCode.last_turn_not_assistant, FaultCode.repeated_role}
)
# Other findings report these; `other_format` is not a fault here, because each row is parsed by its format.
REPORTED_ELSEWHERE = OUT_OF_ORDER | {FaultCode.empty_text, FaultCode.other_format}
# A short completion that repeats is a label; a long one is a refusal or a mistake in the data.
MIN_REPEATED_CHARACTERS = 30
MIN_REPEATED_ROWS = 10
MIN_REPEATED_SHARE = 0.1
# A bound on memory: about 100 bytes for each row.
MAX_REMEMBERED = 2_000_000


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
    rows: Iterable[Sequence[PromptCompletion]], special_tokens: Sequence[str], *, check_completions: bool
) -> Iterator[Finding]:
    """Yield the findings in the text of rows, in one pass.

    The items of a row are its assistant turns, or its chosen and rejected completions.
    """
    checks: list[DuplicateCheck | SpecialTokenCheck | CompletionCheck] = [
        DuplicateCheck(),
        SpecialTokenCheck(special_tokens),
    ]
    if check_completions:
        checks.append(CompletionCheck())
    for pairs in rows:
        for check in checks:
            check.add(pairs)
    for check in checks:
        yield from check.findings()


class DuplicateCheck:
    """Counts rows with the messages of an earlier row, whatever their other fields."""

    def __init__(self) -> None:
        self._rows = 0
        self._first_lines: dict[bytes, int] = {}
        self._places: list[FindingPlace] = []

    def add(self, pairs: Sequence[PromptCompletion]) -> None:
        """Check the next row."""
        self._rows += 1
        content = [pairs[-1].prompt, [pair.completion for pair in pairs], pairs[-1].tools]
        key = value_digest(content)
        if (first := self._first_lines.get(key)) is not None:
            self._places.append((pairs[-1].row, f"The row has the content of line {first}."))
        elif len(self._first_lines) < MAX_REMEMBERED:
            self._first_lines[key] = pairs[-1].row

    def findings(self) -> Iterator[Finding]:
        """Yield a warning, because some rows are repeated on purpose."""
        if self._places:
            yield new_finding(
                FindingCode.duplicates,
                FindingLevel.warning,
                f"{len(self._places)} of {self._rows} rows repeat an earlier row.",
                "Drop them with the filter `duplicates` of `prepare`, unless they should have more weight.",
                places=self._places,
                count=len(self._places),
                rows=self._rows,
            )


class SpecialTokenCheck:
    """Counts rows whose text contains special tokens, usually because a chat template already rendered it."""

    def __init__(self, special_tokens: Sequence[str]) -> None:
        self._rows = 0
        self._places: list[FindingPlace] = []
        self._pattern = re.compile("|".join(map(re.escape, special_tokens)) or r"(?!)")

    def add(self, pairs: Sequence[PromptCompletion]) -> None:
        """Check the next row."""
        self._rows += 1
        messages = [message for pair in pairs for message in pair.completion] + pairs[-1].prompt
        for message in messages:
            if found := self._pattern.search(message["content"]):
                self._places.append((pairs[-1].row, message["content"][max(0, found.start() - 30) :]))
                break

    def findings(self) -> Iterator[Finding]:
        """Yield a warning, because a text may be about such tokens."""
        if self._places:
            yield new_finding(
                FindingCode.special_tokens_in_text,
                FindingLevel.warning,
                f"The text of {len(self._places)} of {self._rows} rows contains special tokens of the model, "
                "which are tokenized as turns of a conversation.",
                "Use `messages` with plain text, or remove the special tokens from the text.",
                places=self._places,
                count=len(self._places),
                rows=self._rows,
            )


class CompletionCheck:
    """Counts empty completions, and long ones that repeat."""

    def __init__(self) -> None:
        self._total = 0
        self._empty: list[FindingPlace] = []
        self._counts: Counter[int] = Counter()
        self._first_lines: dict[int, int] = {}
        self._repeated: dict[int, FindingPlace] = {}

    def add(self, pairs: Sequence[PromptCompletion]) -> None:
        """Check the next row."""
        for pair in pairs:
            self._total += 1
            text = pair.completion_text.strip()
            if not text and not any(message.get("tool_calls") for message in pair.completion):
                self._empty.append((pair.row, pair.prompt[-1]["content"] if pair.prompt else ""))
            if len(text) >= MIN_REPEATED_CHARACTERS:
                self._count(text, pair.row)

    def findings(self) -> Iterator[Finding]:
        """Yield an error for empty completions, as validation does, and a warning for repeated ones."""
        if self._empty:
            yield new_finding(
                FindingCode.completion_empty,
                FindingLevel.error,
                f"{len(self._empty)} of {self._total} completions are empty.",
                "Drop these rows, or add the text of their completions.",
                places=self._empty,
                count=len(self._empty),
                rows=self._total,
            )
        for key, place in self._repeated.items():
            if self._counts[key] >= max(MIN_REPEATED_ROWS, MIN_REPEATED_SHARE * self._total):
                yield new_finding(
                    FindingCode.completion_repeated,
                    FindingLevel.warning,
                    f"{self._counts[key]} of {self._total} completions are the same text.",
                    "Check whether they are refusals or a mistake, and drop most of them.",
                    places=[place],
                    count=self._counts[key],
                    rows=self._total,
                )

    def _count(self, text: str, line: int) -> None:
        key = hash(text)
        if key in self._counts or len(self._counts) < MAX_REMEMBERED:
            self._counts[key] += 1
            first = self._first_lines.setdefault(key, line)
            if self._counts[key] == MIN_REPEATED_ROWS:
                self._repeated[key] = first, text


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
