"""What can be wrong with training data: the published list of codes, and one finding."""

from enum import StrEnum
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field


class FaultCode(StrEnum):
    """Kinds of findings, from those that spoil a file to those that spoil one field of one row."""

    # The file as a whole.
    empty_file = "empty_file"
    compressed_file = "compressed_file"
    not_jsonl = "not_jsonl"
    wrong_encoding = "wrong_encoding"
    json_array = "json_array"
    pretty_printed = "pretty_printed"
    # A line that cannot be read.
    invalid_json = "invalid_json"
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
    # A row whose fields are wrong.
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
    # Warnings: the row is used, but probably not as it was meant.
    blank_line = "blank_line"
    duplicate_key = "duplicate_key"
    duplicate_row = "duplicate_row"
    equal_answers = "equal_answers"
    repeated_role = "repeated_role"

    @property
    def is_warning(self) -> bool:
        """Whether a row with only this finding is still used."""
        return self in _WARNINGS


_WARNINGS: Final = frozenset(
    {
        FaultCode.blank_line,
        FaultCode.duplicate_key,
        FaultCode.duplicate_row,
        FaultCode.equal_answers,
        FaultCode.repeated_role,
    }
)


class Fault(BaseModel):
    """One finding, with the place where it was made."""

    model_config = ConfigDict(frozen=True)

    line: int | None = Field(None, description="Line of the file, from 1; null for the file as a whole.")
    field: str | None = Field(None, description="Path of the field in the row, such as `messages[2].role`.")
    code: FaultCode
    message: str = Field(description="What is wrong and what to do, as a sentence.")


def quote_value(value: Any) -> str:
    """A value as an error message names it: short, and printable whatever it holds."""
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:40] + "…")
    return type_name(value)


def type_name(value: Any) -> str:
    """JSON's word for the type of a value."""
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
