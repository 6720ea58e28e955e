"""Checks of one row against a format, for the validation of files and for conversion."""

import json
from collections.abc import Callable
from typing import Any, Final

from trainers.data.conversation import introduction, preference_messages, to_messages
from trainers.data.faults import Fault, FaultCode, quote_value
from trainers.data.formats import (
    FIELD_SETS,
    FLAT_FIELDS,
    Row,
    RowFormat,
    detect_format,
    has_format,
    is_openai_preference,
)
from trainers.data.texts.folding import is_blank
from trainers.data.turns import (
    SHAREGPT_TURN,
    check_conversation,
    empty_text_fault,
    is_plain_conversation,
    wrong_type_fault,
)


def validate_row(row: Row, row_format: RowFormat) -> list[Fault]:
    """Return all faults of a row, without line numbers.

    Warnings are included: the row is valid if `code.is_warning` holds for every fault.
    """
    if not has_format(row, row_format):
        return [_format_fault(row, row_format)]
    faults: list[Fault] = []
    _CHECKS[row_format](row, row_format, faults)
    if "tools" in row:
        _check_tools(row["tools"], "tools", faults)
    if ("system" in row or "history" in row) and row_format is not RowFormat.text:
        _check_introduction(row, row_format, faults)
    return faults


def _check_introduction(row: Row, row_format: RowFormat, faults: list[Fault]) -> None:
    """Append the faults of the fields `system` and `history`, which a row of every format may have."""
    readable = all(fault.code.is_warning for fault in faults)
    if not isinstance(row.get("system"), str | None):
        faults.append(wrong_type_fault("system", "a string or null", row["system"]))
        return
    try:
        introduction(row)
    except ValueError as error:
        faults.append(Fault(field="history", code=FaultCode.wrong_type, message=str(error)))
        return
    if readable:
        try:
            to_messages(row, row_format)
        except ValueError as error:
            faults.append(Fault(field="system", code=FaultCode.system_twice, message=str(error)))


def _format_fault(row: Row, row_format: RowFormat) -> Fault:
    other = detect_format(row)
    if other is not None:
        return Fault(
            code=FaultCode.other_format,
            message=f"The row has the format `{other}`, but the file has the format `{row_format}`: "
            "rewrite the row, or move it to another file.",
        )
    if row_format is RowFormat.llama:
        return unknown_format_fault(row)
    missing = min((fields - row.keys() for fields in FIELD_SETS[row_format]), key=len)
    if len(missing) < min(len(fields) for fields in FIELD_SETS[row_format]):
        field = min(missing)
        return Fault(
            field=field,
            code=FaultCode.missing_field,
            message=f"`{field}` is missing: every row of the format `{row_format}` needs it. Add it.",
        )
    return unknown_format_fault(row)


def unknown_format_fault(row: Row) -> Fault:
    """Return the fault of a row whose fields match no format."""
    names = ", ".join(quote_value(name) for name in list(row)[:8]) or "none"
    return Fault(
        code=FaultCode.unknown_format,
        message=f"The row's fields ({names}) match no known format: rename them, for example to `messages`, "
        "or to `prompt` and `completion`.",
    )


def _check_messages(row: Row, _: RowFormat, faults: list[Fault]) -> None:
    if is_plain_conversation(row["messages"]):
        return
    if not check_conversation(row["messages"], "messages", faults):
        return
    if not any(m["role"] == "assistant" and m.get("weight") != 0 for m in row["messages"]):
        faults.append(
            Fault(
                field="messages",
                code=FaultCode.nothing_to_train,
                message="All assistant messages in `messages` have `weight` 0: set it to 1 in at least one "
                "of them.",
            )
        )


def _check_prompt_row(row: Row, _: RowFormat, faults: list[Fault]) -> None:
    check_conversation(row["messages"], "messages", faults, ends=False)


def _check_sharegpt(row: Row, _: RowFormat, faults: list[Fault]) -> None:
    check_conversation(row["conversations"], "conversations", faults, turn=SHAREGPT_TURN)


def _check_flat(row: Row, row_format: RowFormat, faults: list[Fault]) -> None:
    if row_format is RowFormat.alpaca:
        _check_optional_text(row, "input", faults)
    for field in FLAT_FIELDS[row_format]:
        _check_text(row[field], field, faults)


def _check_document(row: Row, _: RowFormat, faults: list[Fault]) -> None:
    _check_text(row["text"], "text", faults)


def _check_llama(row: Row, row_format: RowFormat, faults: list[Fault]) -> None:
    try:
        messages = to_messages({"text": row["text"]}, row_format)
    except ValueError as error:
        faults.append(Fault(field="text", code=FaultCode.invalid_marks, message=str(error)))
    else:
        check_conversation(messages, "text", faults)


def _check_prompt_completion(row: Row, _: RowFormat, faults: list[Fault]) -> None:
    _check_prompt(row["prompt"], "prompt", faults)
    _check_completion(row["completion"], "completion", ("assistant",), faults)


def _check_preference(row: Row, _: RowFormat, faults: list[Fault]) -> None:
    fields = ("chosen", "rejected")
    begins: tuple[str, ...] = ("assistant", "user")
    if is_openai_preference(row):
        fields, begins = ("preferred_output", "non_preferred_output"), ("assistant",)
        _check_openai_input(row["input"], faults)
    elif row.get("prompt") is not None:
        _check_prompt(row["prompt"], "prompt", faults)
    for field in fields:
        _check_completion(row[field], field, begins, faults)
    if all(fault.code.is_warning for fault in faults):
        _check_pair(row, fields, faults)


def _check_openai_input(value: Any, faults: list[Fault]) -> None:
    if not isinstance(value, dict):
        faults.append(wrong_type_fault("input", "an object with `messages`", value))
        return
    check_conversation(value.get("messages"), "input.messages", faults, ends=False)
    if "tools" in value:
        _check_tools(value["tools"], "input.tools", faults)


def _check_pair(row: Row, fields: tuple[str, str], faults: list[Fault]) -> None:
    chosen, rejected = fields
    try:
        # The fields `system` and `history` are checked on their own.
        _, *completions = preference_messages({**row, "system": None, "history": None})
    except ValueError as error:
        faults.append(Fault(field="prompt", code=FaultCode.missing_prompt, message=str(error)))
        return
    misplaced = [field for field, c in zip(fields, completions, strict=True) if c[0]["role"] != "assistant"]
    if misplaced:
        message = (
            f"`{misplaced[0]}` does not continue the prompt with an assistant message: repeat the prompt "
            "exactly in both completions, or in neither."
        )
        faults.append(Fault(field=misplaced[0], code=FaultCode.message_order, message=message))
    if row[chosen] == row[rejected]:
        message = f"`{chosen}` and `{rejected}` are equal, so the row has no effect: remove it."
        faults.append(Fault(field=rejected, code=FaultCode.equal_answers, message=message))


def _check_prompt(value: Any, field: str, faults: list[Fault]) -> None:
    if isinstance(value, str):
        _check_text(value, field, faults)
    elif check_conversation(value, field, faults, ends=False) and value[-1]["role"] == "assistant":
        message = (
            f"`{field}` ends with an assistant message: end it with a user message, or move the last "
            "message to the completion."
        )
        faults.append(Fault(field=field, code=FaultCode.message_order, message=message))


def _check_completion(value: Any, field: str, begins: tuple[str, ...], faults: list[Fault]) -> None:
    if isinstance(value, str):
        _check_text(value, field, faults)
    else:
        check_conversation(value, field, faults, begins=begins)


def _check_text(value: Any, field: str, faults: list[Fault]) -> None:
    if not isinstance(value, str):
        faults.append(wrong_type_fault(field, "a string", value))
    elif is_blank(value):
        faults.append(empty_text_fault(field))


def _check_optional_text(row: Row, field: str, faults: list[Fault]) -> None:
    if not isinstance(row.get(field), str | None):
        faults.append(wrong_type_fault(field, "a string or null", row[field]))


def _check_tools(tools: Any, field: str, faults: list[Fault]) -> None:
    if isinstance(tools, str):
        tools = _parse_tools(tools)
    if tools is None or (isinstance(tools, list) and all(_is_tool(tool) for tool in tools)):
        return
    message = (
        f"`{field}` must be a list of `{{type: function, function: {{name, …}}}}`, or such a list as "
        "a JSON string."
    )
    faults.append(Fault(field=field, code=FaultCode.invalid_tools, message=message))


def _parse_tools(text: str) -> Any:
    try:
        return json.loads(text) if text.strip() else None
    except (ValueError, RecursionError):
        return text


def _is_tool(tool: Any) -> bool:
    function = tool.get("function") if isinstance(tool, dict) else None
    return isinstance(function, dict) and isinstance(function.get("name"), str) and bool(function["name"])


_CHECKS: Final[dict[RowFormat, Callable[[Row, RowFormat, list[Fault]], None]]] = {
    RowFormat.messages: _check_messages,
    RowFormat.prompt: _check_prompt_row,
    RowFormat.sharegpt: _check_sharegpt,
    RowFormat.prompt_completion: _check_prompt_completion,
    RowFormat.instruction: _check_flat,
    RowFormat.alpaca: _check_flat,
    RowFormat.question_answer: _check_flat,
    RowFormat.llama: _check_llama,
    RowFormat.text: _check_document,
    RowFormat.preference: _check_preference,
}
