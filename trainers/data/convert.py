"""Rows rewritten from one shape into another, without losing anything in silence.

Turns, system turns, tool calls, offered tools, the choice of what is trained, and all other fields of a row
come along; a row that holds what the target has no place for is a ValueError that names it. White space of
texts is kept. Three things are brought into one spelling: text parts become one string, `developer` becomes
`system`, and the `input` of an Alpaca row joins its instruction, whose border no other shape can hold.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from trainers.data.checks import validate_row
from trainers.data.conversation import offered_tools, preference_messages, prompt_messages, weighted_messages
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
    """How a row is to be written; preference pairs have two spellings, every other format one."""

    messages = "messages"
    prompt_completion = "prompt_completion"
    instruction = "instruction"
    alpaca = "alpaca"
    sharegpt = "sharegpt"
    question_answer = "question_answer"
    llama = "llama"
    trl_preference = "trl_preference"
    openai_preference = "openai_preference"

    @property
    def has_pairs(self) -> bool:
        """Whether a row compares two answers."""
        return self in (RowShape.trl_preference, RowShape.openai_preference)

    @property
    def row_format(self) -> RowFormat:
        """The format as which validation knows the shape."""
        return RowFormat.preference if self.has_pairs else RowFormat(self.value)


@dataclass(frozen=True)
class Content:
    """What a row says, apart from its spelling: a conversation, or a prompt with a chosen and a rejected."""

    messages: list[Message]
    answers: tuple[list[Message], list[Message]] | None
    tools: list[dict[str, Any]] | None
    others: dict[str, Any]


# What a shape gives a meaning to; all other fields of a row are carried along.
OWN_FIELDS: Final[dict[RowShape, frozenset[str]]] = {
    RowShape.messages: frozenset({"messages", "tools"}),
    RowShape.prompt_completion: frozenset({"prompt", "completion", "tools"}),
    RowShape.instruction: frozenset({"system", "instruction", "response", "tools"}),
    RowShape.alpaca: frozenset({"system", "instruction", "input", "output", "tools"}),
    RowShape.sharegpt: frozenset({"system", "conversations", "tools"}),
    RowShape.question_answer: frozenset({"system", "question", "answer", "tools"}),
    RowShape.llama: frozenset({"text", "tools"}),
    RowShape.trl_preference: frozenset({"prompt", "chosen", "rejected", "tools"}),
    RowShape.openai_preference: frozenset({"input", "preferred_output", "non_preferred_output", "tools"}),
}
SHAREGPT_NAMES: Final = {"system": "system", "user": "human", "assistant": "gpt", "tool": "tool"}


def detect_shape(row: Row) -> RowShape | None:
    """The shape in which a row is written, told from its fields."""
    row_format = detect_format(row)
    if row_format is RowFormat.preference:
        return RowShape.openai_preference if is_openai_preference(row) else RowShape.trl_preference
    return RowShape(row_format.value) if row_format else None


def convert_row(row: Row, source: RowShape, target: RowShape) -> Row:
    """The row in another shape; a row that is in it already is returned as it is.

    Texts stay plain strings where a shape knows them and nothing but one question and its answer is there.
    Raises ValueError for a row which validation would refuse, and for one that cannot be written in the
    target without a loss.
    """
    _refuse(row, source, "The row is not valid as")
    if source is target:
        return row
    content = _read(row, source)
    if source.has_pairs and not target.has_pairs:
        raise _loss(target, "its rejected answer", "Take the chosen answer alone with `keep_chosen`")
    if target.has_pairs and not source.has_pairs:
        raise ValueError(f"A row of `{source}` has one answer, but `{target}` needs a rejected one as well.")
    written = _WRITERS[target](content, target)
    _refuse_clashes(content.others, written, target)
    converted = {**written, **content.others}
    _refuse(converted, target, "The row cannot be written as")
    if (found := detect_shape(converted)) is not target:
        raise ValueError(f"The row written as `{target}` would be read as `{found}`: drop its other fields.")
    return converted


def keep_chosen(row: Row) -> Row:
    """A preference row as a prompt_completion row of its chosen answer, without the rejected one."""
    shape = detect_shape(row)
    if shape is None or not shape.has_pairs:
        raise ValueError("Only a row of preference pairs has a chosen answer to keep.")
    _refuse(row, shape, "The row is not valid as")
    content = _read(row, shape)
    assert content.answers is not None
    return _with_tools(_prompt_completion_row(content.messages, content.answers[0]), content) | content.others


def _read(row: Row, source: RowShape) -> Content:
    others = {name: value for name, value in row.items() if name not in OWN_FIELDS[source]}
    if source.has_pairs:
        prompt, chosen, rejected = preference_messages(row)
        if source is RowShape.openai_preference:
            inner = {k: v for k, v in row["input"].items() if k not in ("messages", "tools")}
            if twice := inner.keys() & others.keys():
                raise ValueError(f"`{min(twice)}` stands both in the row and in its `input`: remove one.")
            others |= inner
        return Content(_clean(prompt), (_clean(chosen), _clean(rejected)), offered_tools(row), others)
    if source is RowShape.sharegpt:
        _refuse_turn_fields(row)
    messages = weighted_messages(row, source.row_format)
    if source is RowShape.prompt_completion:
        # Answers within a prompt are context, which the other shapes say with a weight.
        context = len(prompt_messages(row))
        messages = [
            message | {"weight": 0} if index < context and message["role"] == "assistant" else message
            for index, message in enumerate(messages)
        ]
    return Content(_clean(messages), None, offered_tools(row), others)


def _clean(messages: list[Message]) -> list[Message]:
    """Without `"weight": 1`, which says what is so anyway."""
    return [
        {name: value for name, value in message.items() if name != "weight" or value == 0}
        for message in messages
    ]


def _refuse_turn_fields(row: Row) -> None:
    for index, turn in enumerate(row["conversations"]):
        known = {"from", "value"}
        if extra := sorted(name for name, value in turn.items() if name not in known and value is not None):
            raise ValueError(
                f"`conversations[{index}].{extra[0]}` has no place in any other shape: remove it."
            )


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
    _refuse_more_than_text(content, target)
    asked, answered = FLAT_FIELDS[target.row_format]
    system, turns = _split_system(content.messages)
    if [turn["role"] for turn in turns] != ["user", "assistant"]:
        raise _loss(target, f"{len(turns) - 2} of its {len(turns)} turns")
    between = {"input": ""} if target is RowShape.alpaca else {}
    row = {asked: turns[0]["content"], **between, answered: turns[1]["content"]}
    return _with_tools({"system": system} | row if system is not None else row, content)


def _write_sharegpt(content: Content, target: RowShape) -> Row:
    _refuse_more_than_text(content, target)
    turns = [{"from": SHAREGPT_NAMES[m["role"]], "value": m["content"]} for m in content.messages]
    return _with_tools({"conversations": turns}, content)


def _write_llama(content: Content, target: RowShape) -> Row:
    _refuse_more_than_text(content, target)
    if content.tools:
        raise _loss(target, "`tools`, which the text of the template does not hold")
    try:
        return {"text": format_llama(content.messages)}
    except ValueError as error:
        raise ValueError(f"The row cannot be written as `{target}`: {error}") from error


def _write_trl(content: Content, _: RowShape) -> Row:
    assert content.answers is not None
    prompt, (chosen, rejected) = content.messages, content.answers
    if _is_text(prompt, "user") and all(_is_text(answer, "assistant") for answer in content.answers):
        texts = (prompt[0]["content"], chosen[0]["content"], rejected[0]["content"])
        return _with_tools(dict(zip(("prompt", "chosen", "rejected"), texts, strict=True)), content)
    return _with_tools({"prompt": prompt, "chosen": chosen, "rejected": rejected}, content)


def _write_openai(content: Content, _: RowShape) -> Row:
    assert content.answers is not None
    chosen, rejected = content.answers
    inner = _with_tools({"messages": _openai_calls(content.messages)}, content)
    # OpenAI keeps this one beside the messages; other fields of a row are ours alone.
    if "parallel_tool_calls" in content.others:
        inner["parallel_tool_calls"] = content.others.pop("parallel_tool_calls")
    return {
        "input": inner,
        "preferred_output": _openai_calls(chosen),
        "non_preferred_output": _openai_calls(rejected),
    }


def _openai_calls(messages: list[Message]) -> list[Message]:
    """With the arguments of tool calls as JSON in a string, as OpenAI reads them."""
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


def _refuse_more_than_text(content: Content, target: RowShape) -> None:
    for index, message in enumerate(content.messages):
        if extra := sorted(message.keys() - {"role", "content"}):
            raise _loss(target, f"`{extra[0]}` of turn {index + 1} ({message['role']})")


def _refuse_clashes(others: dict[str, Any], written: Row, target: RowShape) -> None:
    if taken := sorted(others.keys() & (written.keys() | OWN_FIELDS[target])):
        raise _loss(target, f"its field `{taken[0]}`, whose name means something else there", "Rename it")


def _refuse(row: Row, shape: RowShape, problem: str) -> None:
    if shape.has_pairs and is_openai_preference(row) != (shape is RowShape.openai_preference):
        raise ValueError(f"{problem} `{shape}`: its fields are those of the other shape of pairs.")
    for fault in validate_row(row, shape.row_format):
        if not fault.code.is_warning:
            raise ValueError(f"{problem} `{shape}`: {fault.message}")


def _loss(target: RowShape, what: str, advice: str = "Choose a shape that holds it") -> ValueError:
    return ValueError(f"The row cannot be written as `{target}` without losing {what}. {advice}.")


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
