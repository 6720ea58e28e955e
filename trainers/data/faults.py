"""Faults of training data: the published list of codes, and a fault with its place."""

from collections import defaultdict
from collections.abc import Iterable
from enum import StrEnum
from typing import Any, Final, Generic, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field


class FaultCode(StrEnum):
    """Kind of fault, from those of a whole file to those of one field of a row."""

    # The whole file cannot be read.
    empty_file = "empty_file"
    compressed_file = "compressed_file"
    not_jsonl = "not_jsonl"
    wrong_encoding = "wrong_encoding"
    json_array = "json_array"
    pretty_printed = "pretty_printed"
    invalid_header = "invalid_header"
    parquet_unreadable = "parquet_unreadable"
    converted_too_large = "converted_too_large"
    # A line cannot be read.
    invalid_json = "invalid_json"
    invalid_csv = "invalid_csv"
    wrong_columns = "wrong_columns"
    truncated_line = "truncated_line"
    bare_carriage_return = "bare_carriage_return"
    line_too_long = "line_too_long"
    invalid_utf8 = "invalid_utf8"
    byte_order_mark = "byte_order_mark"
    nul_byte = "nul_byte"
    not_finite_number = "not_finite_number"
    number_too_long = "number_too_long"
    too_deep = "too_deep"
    too_complex = "too_complex"
    lone_surrogate = "lone_surrogate"
    not_an_object = "not_an_object"
    # A row has invalid fields.
    unknown_format = "unknown_format"
    other_format = "other_format"
    missing_field = "missing_field"
    wrong_type = "wrong_type"
    empty_text = "empty_text"
    empty_conversation = "empty_conversation"
    unknown_role = "unknown_role"
    message_order = "message_order"
    no_assistant_turn = "no_assistant_turn"
    last_turn_not_assistant = "last_turn_not_assistant"
    unsupported_content = "unsupported_content"
    invalid_tool_call = "invalid_tool_call"
    invalid_tools = "invalid_tools"
    invalid_weight = "invalid_weight"
    invalid_marks = "invalid_marks"
    nothing_to_train = "nothing_to_train"
    missing_prompt = "missing_prompt"
    system_twice = "system_twice"
    # Warnings: the row is used, but probably not as intended.
    blank_line = "blank_line"
    duplicate_key = "duplicate_key"
    duplicate_row = "duplicate_row"
    equal_answers = "equal_answers"
    repeated_role = "repeated_role"
    label_missing = "label_missing"
    field_not_read = "field_not_read"

    @property
    def is_warning(self) -> bool:
        """Whether a row with only this fault is still used."""
        return self in _WARNINGS


_WARNINGS: Final = frozenset(
    {
        FaultCode.blank_line,
        FaultCode.duplicate_key,
        FaultCode.duplicate_row,
        FaultCode.equal_answers,
        FaultCode.repeated_role,
        FaultCode.label_missing,
        FaultCode.field_not_read,
    }
)


class Fault(BaseModel):
    """A fault and its place in the file."""

    model_config = ConfigDict(frozen=True)

    line: int | None = Field(
        None,
        description="Line of the file, or row of a file that was converted, from 1; null for the whole file.",
    )
    file_line: int | None = Field(
        None,
        description="Line of the uploaded CSV file in which the row begins, with the header as line 1; null "
        "for other files.",
    )
    field: str | None = Field(
        None, description="Path of the field in the row, such as `messages[2].role`; null for the whole row."
    )
    code: FaultCode = Field(description="Kind of fault.")
    message: str = Field(description="What is wrong, and what to do.")


class CodedFinding(Protocol):
    """A finding with a code, such as a fault."""

    @property
    def code(self) -> str:
        """The kind of the finding."""


Coded = TypeVar("Coded", bound=CodedFinding)


class FindingShare(Generic[Coded]):
    """The first findings of each code, at most `limit` in all: a frequent code does not hide the others."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._n_kept = self._n_added = 0
        self._kept: dict[str, list[tuple[int, Coded]]] = defaultdict(list)

    def has_room(self, code: str) -> bool:
        """Return whether the next finding of a code is kept."""
        return self._n_kept < self._limit or self._n_largest() >= len(self._kept[code]) + 2

    def add(self, finding: Coded) -> None:
        """Keep a finding for which there is room, in place of the last one of the most frequent code."""
        if self._n_kept == self._limit:
            next(each for each in self._kept.values() if len(each) == self._n_largest()).pop()
            self._n_kept -= 1
        self._kept[finding.code].append((self._n_added, finding))
        self._n_kept += 1
        self._n_added += 1

    def in_order(self) -> list[Coded]:
        """Return what is kept, in the order in which it was added."""
        together = sorted((each for kept in self._kept.values() for each in kept), key=lambda each: each[0])
        return [finding for _, finding in together]

    def _n_largest(self) -> int:
        return max(map(len, self._kept.values()), default=0)


def share_by_code(findings: Iterable[Coded], limit: int) -> list[Coded]:
    """Return at most `limit` findings in their order, among them the first ones of each code."""
    share: FindingShare[Coded] = FindingShare(limit)
    for each in findings:
        if share.has_room(each.code):
            share.add(each)
    return share.in_order()


def quote_value(value: Any) -> str:
    """Return a value for an error message: short, and printable for every content."""
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:40] + "…")
    return type_name(value)


def type_name(value: Any) -> str:
    """Return the JSON type of a value, with its article."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
        case _:
            return "an object"
