"""Conversion of rows from one shape to another, without silent loss.

Messages, tool calls, tools, weights and all other fields of a row are kept, including white space. A row with
something that the target cannot represent is a ValueError that names it. Three things are normalized: text
parts become one string, `developer` becomes `system`, and the `input` of an Alpaca row is appended to its
instruction, because no other shape separates them.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from trainers.data.checks import validate_row
from trainers.data.conversation import (
    has_history,
    offered_tools,
    preference_messages,
    prompt_messages,
    weighted_messages,
)
from trainers.data.formats import (
    FLAT_FIELDS,
    Message,
    Row,
    RowFormat,
    detect_format,
    is_openai_preference,
)
from trainers.data.llama import format_llama


class RowShape(StrEnum):
    """Shape of a row to convert to: preference pairs have two, every other format has one."""

    messages = "messages"
    prompt_completion = "prompt_completion"
    instruction = "instruction"
    alpaca = "alpaca"
    sharegpt = "sharegpt"
    question_answer = "question_answer"
    llama = "llama"
    text = "text"
    trl_preference = "trl_preference"
    openai_preference = "openai_preference"

    @property
    def has_pairs(self) -> bool:
        """Whether a row is a preference pair."""
        return self in (RowShape.trl_preference, RowShape.openai_preference)

    @property
    def row_format(self) -> RowFormat:
        """The format that validation uses for the shape."""
        return RowFormat.preference if self.has_pairs else RowFormat(self.value)


@dataclass(frozen=True)
class Content:
    """Content of a row independent of its shape: a conversation, or a prompt with two completions."""

    messages: list[Message]
    pair: tuple[list[Message], list[Message]] | None
    tools: list[dict[str, Any]] | None
    other_fields: dict[str, Any]


# Fields with a meaning in every shape, and in one; all other fields of a row are copied.
SHARED_FIELDS: Final = frozenset({"system", "history", "tools"})
OWN_FIELDS: Final[dict[RowShape, frozenset[str]]] = {
    RowShape.messages: SHARED_FIELDS | {"messages"},
    RowShape.prompt_completion: SHARED_FIELDS | {"prompt", "completion"},
    RowShape.instruction: SHARED_FIELDS | {"instruction", "response"},
    RowShape.alpaca: SHARED_FIELDS | {"instruction", "input", "output"},
    RowShape.sharegpt: SHARED_FIELDS | {"conversations"},
    RowShape.question_answer: SHARED_FIELDS | {"question", "answer"},
    RowShape.llama: SHARED_FIELDS | {"text"},
    RowShape.text: frozenset({"text"}),
    RowShape.trl_preference: SHARED_FIELDS | {"prompt", "chosen", "rejected"},
    RowShape.openai_preference: SHARED_FIELDS | {"input", "preferred_output", "non_preferred_output"},
}
SHAREGPT_NAMES: Final = {"system": "system", "user": "human", "assistant": "gpt", "tool": "tool"}


def detect_shape(row: Row) -> RowShape | None:
    """Return the shape of a row; None if its fields match none, or if it is a prompt without completion."""
    row_format = detect_format(row)
    if row_format is RowFormat.preference:
        return RowShape.openai_preference if is_openai_preference(row) else RowShape.trl_preference
    return RowShape(row_format.value) if row_format not in (None, RowFormat.prompt) else None


def convert_row(row: Row, source: RowShape, target: RowShape) -> Row:
    """Return the row in the target shape; a row that already has it is returned unchanged.

    A single exchange of texts stays two strings if the target allows it. Raises ValueError for an invalid
    row, and for one that the target cannot represent without loss.
    """
    _check_valid(row, source, "The row is not valid as")
    if source is target:
        return row
    if RowShape.text in (source, target):
        raise ValueError(f"A row of `{source}` cannot be converted to `{target}`: a `text` has no messages.")
    content = _read(row, source)
    if source.has_pairs and not target.has_pairs:
        raise _loss(target, "its rejected completion", "Keep the chosen completion alone with `keep_chosen`")
    if target.has_pairs and not source.has_pairs:
        raise ValueError(f"A row of `{source}` has one completion, but `{target}` also needs a rejected one.")
    written = _WRITERS[target](content, target)
    _check_name_clashes(content.other_fields, written, target)
    converted = {**written, **content.other_fields}
    _check_valid(converted, target, "The row cannot be converted to")
    if (found := detect_shape(converted)) is not target:
        raise ValueError(
            f"The row converted to `{target}` would be detected as `{found}`: remove its other fields."
        )
    return converted


def keep_chosen(row: Row) -> Row:
    """Return a preference row as a prompt_completion row with its chosen completion."""
    shape = detect_shape(row)
    if shape is None or not shape.has_pairs:
        raise ValueError("The row is not a preference pair, so it has no chosen completion.")
    _check_valid(row, shape, "The row is not valid as")
    content = _read(row, shape)
    assert content.pair is not None
    return (
        _with_tools(_prompt_completion_row(content.messages, content.pair[0]), content) | content.other_fields
    )


def _read(row: Row, source: RowShape) -> Content:
    # A `history` that does not consist of turns is a field like any other.
    own = OWN_FIELDS[source] if has_history(row) else OWN_FIELDS[source] - {"history"}
    others = {name: value for name, value in row.items() if name not in own}
    if source.has_pairs:
        prompt, chosen, rejected = preference_messages(row)
        if source is RowShape.openai_preference:
            inner = {k: v for k, v in row["input"].items() if k not in ("messages", "tools")}
            if repeated := inner.keys() & others.keys():
                raise ValueError(
                    f"`{min(repeated)}` is both in the row and in its `input`: remove one of them."
                )
            others |= inner
        return Content(
            _drop_default_weights(prompt),
            (_drop_default_weights(chosen), _drop_default_weights(rejected)),
            offered_tools(row),
            others,
        )
    if source is RowShape.sharegpt:
        _check_turn_fields(row)
    messages = weighted_messages(row, source.row_format)
    if source is RowShape.prompt_completion:
        # Assistant messages in a prompt are not trained, which other shapes express by a weight.
        context = len(prompt_messages(row))
        messages = [
            message | {"weight": 0} if index < context and message["role"] == "assistant" else message
            for index, message in enumerate(messages)
        ]
    return Content(_drop_default_weights(messages), None, offered_tools(row), others)


def _drop_default_weights(messages: list[Message]) -> list[Message]:
    # `"weight": 1` is the default.
    return [
        {name: value for name, value in message.items() if name != "weight" or value == 0}
        for message in messages
    ]


def _check_turn_fields(row: Row) -> None:
    for index, turn in enumerate(row["conversations"]):
        known = {"from", "value"}
        if extra := sorted(name for name, value in turn.items() if name not in known and value is not None):
            raise ValueError(f"No other shape can represent `conversations[{index}].{extra[0]}`: remove it.")


def _write_messages(content: Content, _: RowShape) -> Row:
    return _with_tools({"messages": content.messages}, content)


def _write_prompt_completion(content: Content, _: RowShape) -> Row:
    messages = content.messages
    trained = [m["role"] == "assistant" and m.get("weight") != 0 for m in messages].index(True)
    prompt = [{name: m[name] for name in m if name != "weight"} for m in messages[:trained]]
    return _with_tools(_prompt_completion_row(prompt, messages[trained:]), content)


def _prompt_completion_row(prompt: list[Message], completion: list[Message]) -> Row:
    if _is_text(prompt, "user") and _is_text(completion, "assistant"):
        return {"prompt": prompt[0]["content"], "completion": completion[0]["content"]}
    return {"prompt": prompt, "completion": completion}


def _write_flat(content: Content, target: RowShape) -> Row:
    _check_text_only(content, target)
    prompt_field, completion_field = FLAT_FIELDS[target.row_format]
    system, turns = _split_system(content.messages)
    if [turn["role"] for turn in turns] != ["user", "assistant"]:
        raise _loss(target, f"{len(turns) - 2} of its {len(turns)} messages")
    between = {"input": ""} if target is RowShape.alpaca else {}
    row = {prompt_field: turns[0]["content"], **between, completion_field: turns[1]["content"]}
    return _with_tools({"system": system} | row if system is not None else row, content)


def _write_sharegpt(content: Content, target: RowShape) -> Row:
    _check_text_only(content, target)
    turns = [{"from": SHAREGPT_NAMES[m["role"]], "value": m["content"]} for m in content.messages]
    return _with_tools({"conversations": turns}, content)


def _write_llama(content: Content, target: RowShape) -> Row:
    _check_text_only(content, target)
    if content.tools:
        raise _loss(target, "`tools`, which the template cannot represent")
    try:
        return {"text": format_llama(content.messages)}
    except ValueError as error:
        raise ValueError(f"The row cannot be converted to `{target}`: {error}") from error


def _write_trl(content: Content, _: RowShape) -> Row:
    assert content.pair is not None
    prompt, (chosen, rejected) = content.messages, content.pair
    if _is_text(prompt, "user") and all(_is_text(completion, "assistant") for completion in content.pair):
        texts = (prompt[0]["content"], chosen[0]["content"], rejected[0]["content"])
        return _with_tools(dict(zip(("prompt", "chosen", "rejected"), texts, strict=True)), content)
    return _with_tools({"prompt": prompt, "chosen": chosen, "rejected": rejected}, content)


def _write_openai(content: Content, _: RowShape) -> Row:
    assert content.pair is not None
    chosen, rejected = content.pair
    inner = _with_tools({"messages": _openai_calls(content.messages)}, content)
    # OpenAI has this field next to the messages; it does not define other fields of a row.
    if "parallel_tool_calls" in content.other_fields:
        inner["parallel_tool_calls"] = content.other_fields.pop("parallel_tool_calls")
    return {
        "input": inner,
        "preferred_output": _openai_calls(chosen),
        "non_preferred_output": _openai_calls(rejected),
    }


def _openai_calls(messages: list[Message]) -> list[Message]:
    # OpenAI expects the arguments of tool calls as a JSON string.
    return [
        {**message, "tool_calls": [_openai_call(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in messages
    ]


def _openai_call(call: dict[str, Any]) -> dict[str, Any]:
    arguments = json.dumps(call["function"].get("arguments") or {}, ensure_ascii=False)
    return {**call, "function": {**call["function"], "arguments": arguments}}


def _with_tools(row: Row, content: Content) -> Row:
    return row | {"tools": content.tools} if content.tools else row


def _is_text(messages: list[Message], role: str) -> bool:
    return len(messages) == 1 and messages[0].keys() == {"role", "content"} and messages[0]["role"] == role


def _split_system(messages: list[Message]) -> tuple[str | None, list[Message]]:
    if messages[0]["role"] == "system":
        return messages[0]["content"], messages[1:]
    return None, messages


def _check_text_only(content: Content, target: RowShape) -> None:
    for index, message in enumerate(content.messages):
        if extra := sorted(message.keys() - {"role", "content"}):
            raise _loss(target, f"`{extra[0]}` of message {index + 1} ({message['role']})")


def _check_name_clashes(others: dict[str, Any], written: Row, target: RowShape) -> None:
    if taken := sorted(others.keys() & (written.keys() | OWN_FIELDS[target])):
        raise _loss(target, f"its field `{taken[0]}`, whose name has another meaning there", "Rename it")


def _check_valid(row: Row, shape: RowShape, problem: str) -> None:
    if shape.has_pairs and is_openai_preference(row) != (shape is RowShape.openai_preference):
        raise ValueError(f"{problem} `{shape}`: its fields are those of the other shape of preference pairs.")
    for fault in validate_row(row, shape.row_format):
        if not fault.code.is_warning:
            raise ValueError(f"{problem} `{shape}`: {fault.message}")


def _loss(target: RowShape, lost: str, hint: str = "Choose a shape that can represent it") -> ValueError:
    return ValueError(f"The row cannot be converted to `{target}` without losing {lost}. {hint}.")


_WRITERS: Final[dict[RowShape, Callable[[Content, RowShape], Row]]] = {
    RowShape.messages: _write_messages,
    RowShape.prompt_completion: _write_prompt_completion,
    RowShape.instruction: _write_flat,
    RowShape.alpaca: _write_flat,
    RowShape.sharegpt: _write_sharegpt,
    RowShape.question_answer: _write_flat,
    RowShape.llama: _write_llama,
    RowShape.trl_preference: _write_trl,
    RowShape.openai_preference: _write_openai,
}
