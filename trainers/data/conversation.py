"""Rows of every format as chat messages, in the form that Hugging Face chat templates render.

Three things are normalized. Tool arguments, which OpenAI writes as a JSON string, become an object: a
template would otherwise encode them twice, while engines decode them. Text parts become one string.
`developer`, OpenAI's newer name of the role `system`, becomes `system`, because templates do not support it.

A row of any format but `text` may have two fields that precede its messages: `system`, the text of a system
message, and `history`, earlier turns as pairs of texts (`[[user, assistant], …]`, as in Alpaca rows) or as
messages.
"""

import json
import re
from typing import Any

from trainers.data.formats import (
    FLAT_FIELDS,
    SHAREGPT_ROLES,
    Message,
    Row,
    RowFormat,
    detect_format,
    is_openai_preference,
)
from trainers.data.llama import parse_llama


def prompt_completions(row: Row, row_format: RowFormat) -> list[tuple[list[Message], list[Message]]]:
    """Return a (prompt, completion) pair per trained assistant message; the prompt is all messages before it.

    A row of `text` is a completion without a prompt. Messages with `"weight": 0` are not trained, and in a
    `prompt_completion` row neither are the assistant messages of `prompt` and `history`.

    Raises ValueError for preference rows and for rows that are invalid.
    """
    if row_format is RowFormat.preference:
        raise ValueError(
            "A preference row has two completions, so it cannot be used for SFT: train on it with DPO, or "
            "rename `prompt` and `chosen` to `prompt` and `completion`, and remove `rejected`."
        )
    if row_format is RowFormat.prompt:
        raise ValueError(
            "The row is a prompt without a completion: only reinforcement learning trains on it."
        )
    if row_format is RowFormat.text:
        return [([], weighted_messages(row, row_format))]
    prompt_length = len(prompt_messages(row)) if row_format is RowFormat.prompt_completion else 1
    messages = weighted_messages(row, row_format)
    clean = [_without_weight(message) for message in messages]
    turns = [i for i in range(prompt_length, len(messages)) if _is_trained(messages[i])]
    if not turns:
        raise ValueError(
            "The row has nothing to train on: it needs an assistant message after a user message."
        )
    return [(clean[:turn], [clean[turn]]) for turn in turns]


def extract_prompt_and_completion(row: Row) -> tuple[list[Message], list[Message]]:
    """Return the last prompt of a row of any format, and its completion, which is empty in a row of prompts.

    For a preference row it is the chosen completion. Raises ValueError for a row without a prompt.
    """
    row_format = detect_format(row)
    if row_format is RowFormat.text:
        raise ValueError("A `text` has no prompt.")
    if row_format is RowFormat.preference:
        prompt, chosen, _ = preference_messages(row)
        return prompt, chosen
    if row_format is not None and to_messages(row, row_format)[-1]["role"] == "assistant":
        return prompt_completions(row, row_format)[-1]
    if row_format is not None:
        return to_messages(row, row_format), []
    for flat in (RowFormat.alpaca, RowFormat.question_answer):
        prompt_field, completion_field = FLAT_FIELDS[flat]
        if prompt_field in row:
            return _from_flat({**row, completion_field: ""}, flat)[:-1], []
    return prompt_messages(row), []


def to_messages(row: Row, row_format: RowFormat) -> list[Message]:
    """Return the row as one conversation, for a preference row with its chosen completion.

    Raises ValueError for an invalid row.
    """
    return [_without_weight(message) for message in weighted_messages(row, row_format)]


def preference_messages(row: Row) -> tuple[list[Message], list[Message], list[Message]]:
    """Return prompt, chosen and rejected completion of a preference row.

    Without a field `prompt`, the prompt is the common start of both conversations. A prompt that a completion
    repeats is removed from it. Raises ValueError if there is no prompt.
    """
    if is_openai_preference(row):
        prompt = _messages(_object(row.get("input"), "input").get("messages"), "input.messages")
        return (
            _introduce(row, prompt),
            _completion(row, "preferred_output"),
            _completion(row, "non_preferred_output"),
        )
    chosen, rejected = _completion(row, "chosen"), _completion(row, "rejected")
    if row.get("prompt") is None:
        prompt, chosen, rejected = _split_at_difference(chosen, rejected)
        return _introduce(row, prompt), chosen, rejected
    prompt = _own_prompt(row)
    return _introduce(row, prompt), _strip_prompt(chosen, prompt), _strip_prompt(rejected, prompt)


def weighted_messages(row: Row, row_format: RowFormat) -> list[Message]:
    """Return the same as `to_messages`, and keep the `weight` of messages that have one."""
    if row_format in (RowFormat.messages, RowFormat.prompt):
        return _introduce(row, _messages(row.get("messages"), "messages"))
    if row_format is RowFormat.sharegpt:
        turns = _list(row.get("conversations"), "conversations")
        return _introduce(row, [_from_sharegpt(turn) for turn in turns])
    if row_format is RowFormat.prompt_completion:
        return [*prompt_messages(row), *_completion(row, "completion")]
    if row_format is RowFormat.preference:
        prompt, chosen, _ = preference_messages(row)
        return [*prompt, *chosen]
    if row_format is RowFormat.text:
        return [{"role": "assistant", "content": _text(row.get("text"), "text")}]
    if row_format is RowFormat.llama:
        return _introduce(row, parse_llama(_text(row.get("text"), "text")))
    return _from_flat(row, row_format)


def prompt_messages(row: Row) -> list[Message]:
    """Return the `prompt` of a row, a string or a list of messages, as messages, after system and history."""
    return _introduce(row, _own_prompt(row))


def introduction(row: Row) -> tuple[list[Message], list[Message]]:
    """Return the messages of the fields `system` and `history`, each of which may be empty.

    Raises ValueError for a field that cannot be read.
    """
    system = [{"role": "system", "content": _text(row["system"], "system")}] if row.get("system") else []
    return system, _history(row["history"]) if has_history(row) else []


def has_history(row: Row) -> bool:
    """Return whether the row has earlier turns in `history`; a field of that name with a text is another."""
    return isinstance(row.get("history"), list) and bool(row["history"])


def offered_tools(row: Row) -> list[dict[str, Any]] | None:
    """Return the tools of a row in the form that chat templates expect, or None."""
    offered = row.get("tools")
    if offered is None and isinstance(row.get("input"), dict):
        offered = row["input"].get("tools")
    if isinstance(offered, str):
        offered = json.loads(offered) if offered.strip() else None
    return offered or None


def _from_flat(row: Row, row_format: RowFormat) -> list[Message]:
    prompt_field, completion_field = FLAT_FIELDS[row_format]
    prompt = _text(row.get(prompt_field), prompt_field)
    if row_format is RowFormat.alpaca and row.get("input"):
        prompt = f"{prompt}\n\n{_text(row['input'], 'input')}"
    completion = _text(row.get(completion_field), completion_field)
    return _introduce(
        row, [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
    )


def _from_sharegpt(turn: Any) -> Message:
    if not isinstance(turn, dict) or turn.get("from") not in SHAREGPT_ROLES:
        raise ValueError(
            f"Every message in `conversations` needs a `from`, one of {', '.join(SHAREGPT_ROLES)}."
        )
    return {
        "role": SHAREGPT_ROLES[turn["from"]],
        "content": _text(turn.get("value"), "conversations[].value"),
    }


def _own_prompt(row: Row) -> list[Message]:
    prompt = row.get("prompt")
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else _messages(prompt, "prompt")


def _introduce(row: Row, messages: list[Message]) -> list[Message]:
    """Put the messages of the fields `system` and `history` before those of the row."""
    if not row.get("system") and not has_history(row):
        return messages
    system, history = introduction(row)
    own = messages[:1] if messages[0]["role"] == "system" else []
    if system and own and system[0]["content"] != own[0]["content"]:
        raise ValueError("`system` differs from the row's own system message: keep one of them.")
    return [*(own or system), *history, *messages[len(own) :]]


def _history(history: list[Any]) -> list[Message]:
    if all(isinstance(turn, dict) for turn in history):
        return _messages(history, "history")
    messages: list[Message] = []
    for turn in history:
        if not isinstance(turn, list) or len(turn) != 2 or not all(isinstance(text, str) for text in turn):
            raise ValueError("`history` must be a list of pairs of texts, of the user and the assistant.")
        messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    return messages


def _completion(row: Row, field: str) -> list[Message]:
    completion = row.get(field)
    if isinstance(completion, str):
        return [{"role": "assistant", "content": completion}]
    return _messages(completion, field)


def _messages(messages: Any, field: str) -> list[Message]:
    return [_normalize(message, field) for message in _list(messages, field)]


def _normalize(message: Any, field: str) -> Message:
    if not isinstance(message, dict) or "role" not in message:
        raise ValueError(f"Every entry of `{field}` must be an object with a `role`.")
    changed = {"role": message["role"], "content": _content(message.get("content"), field)}
    changed |= {name: value for name, value in message.items() if value is not None and name not in changed}
    if message["role"] == "developer":
        changed["role"] = "system"
    return with_parsed_arguments(changed)


def with_parsed_arguments(message: Message) -> Message:
    """Return a message whose tool calls have their arguments as objects; raises ValueError."""
    if not message.get("tool_calls"):
        return message
    return message | {"tool_calls": [_tool_call(call) for call in message["tool_calls"]]}


def _content(content: Any, field: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "".join(_part_text(part, field) for part in _list(content, f"{field}[].content"))


def _part_text(part: Any, field: str) -> str:
    if not isinstance(part, dict) or part.get("type") != "text":
        raise ValueError(f"`{field}[].content` can contain only parts of type `text`.")
    return _text(part.get("text"), f"{field}[].content[].text")


def _tool_call(call: Any) -> dict[str, Any]:
    if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
        raise ValueError("Every entry of `tool_calls` needs a `function` with `name` and `arguments`.")
    function = dict(call["function"])
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        # The text `null` is what some clients record for a call without arguments.
        arguments = json.loads(arguments or "{}")
    function["arguments"] = {} if arguments is None else arguments
    return {**call, "function": function}


def _list(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"`{field}` must be a non-empty list.")
    return value


def _object(value: Any, field: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"`{field}` must be an object.")
    return value


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"`{field}` must be a string.")
    return value


def _without_weight(message: Message) -> Message:
    if "weight" not in message:
        return message
    return {name: value for name, value in message.items() if name != "weight"}


def _is_trained(message: Message) -> bool:
    return bool(message["role"] == "assistant" and message.get("weight", 1) != 0)


def _split_at_difference(
    chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], list[Message], list[Message]]:
    chosen, rejected = _parse_transcript(chosen), _parse_transcript(rejected)
    longest = min(len(chosen), len(rejected)) - 1
    shared = 0
    while shared < longest and chosen[shared] == rejected[shared]:
        shared += 1
    if shared == 0:
        raise ValueError(
            "The row has no prompt: add `prompt`, or begin `chosen` and `rejected` with the same messages."
        )
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _parse_transcript(completion: list[Message]) -> list[Message]:
    # Anthropic's helpfulness data has whole dialogues as text: `\n\nHuman: …\n\nAssistant: …`.
    text = "\n\n" + completion[0]["content"].lstrip("\n")
    if len(completion) > 1 or not text.startswith("\n\nHuman:"):
        return completion
    pieces = re.split(r"\n\n(Human|Assistant): ?", text)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[speaker], "content": text}
        for speaker, text in zip(pieces[::2], pieces[1::2], strict=True)
    ]


def _strip_prompt(completion: list[Message], prompt: list[Message]) -> list[Message]:
    repeats_prompt = len(completion) > len(prompt) and completion[: len(prompt)] == prompt
    return completion[len(prompt) :] if repeats_prompt else completion
