"""The field of a row that a message of its conversation comes from."""

from typing import Any

from trainers.data.conversation import introduction
from trainers.data.formats import FLAT_FIELDS, Row, RowFormat, is_openai_preference

LIST_FIELDS = {
    RowFormat.messages: "messages",
    RowFormat.prompt: "messages",
    RowFormat.sharegpt: "conversations",
    RowFormat.llama: "text",
}


def message_field(row: Row, row_format: RowFormat, index: int, side: str = "") -> str:
    """Return the path of a message, such as `messages[2]` or `completion`.

    `index` counts the messages that `to_messages` returns, and `side` is the completion of a preference row:
    `chosen` or `rejected`.
    """
    if row_format is RowFormat.text:
        return "text"
    system, history = introduction(row)
    own_system = row_format in LIST_FIELDS and _starts_with_system(row, row_format)
    if system and not own_system:
        if index == 0:
            return "system"
        index -= 1
    elif own_system and index == 0:
        return f"{LIST_FIELDS[row_format]}[0]"
    if history and index - own_system < len(history):
        return f"history[{index - own_system}]"
    index -= len(history)
    if row_format in LIST_FIELDS:
        return f"{LIST_FIELDS[row_format]}[{index}]"
    if row_format in FLAT_FIELDS:
        return FLAT_FIELDS[row_format][min(index, 1)]
    return _exchange_field(row, row_format, index, side)


def _starts_with_system(row: Row, row_format: RowFormat) -> bool:
    if row_format is RowFormat.llama:
        return "<<SYS>>" in row["text"]
    turn = row[LIST_FIELDS[row_format]][0]
    return turn.get("role", turn.get("from")) in ("system", "developer")


def _exchange_field(row: Row, row_format: RowFormat, index: int, side: str) -> str:
    """Return the path of a message in a row with a prompt and one or two completions."""
    prompt_field, completion_field = "prompt", side or "completion"
    prompt: Any = row.get("prompt")
    if row_format is RowFormat.preference and is_openai_preference(row):
        prompt_field, prompt = "input.messages", row["input"]["messages"]
        completion_field = "preferred_output" if side == "chosen" else "non_preferred_output"
    completion = row[completion_field]
    if prompt is None:
        # The prompt is the start of both conversations.
        return completion_field if isinstance(completion, str) else f"{completion_field}[{index}]"
    n_prompt = 1 if isinstance(prompt, str) else len(prompt)
    if index < n_prompt:
        return prompt_field if isinstance(prompt, str) else f"{prompt_field}[{index}]"
    repeats = isinstance(completion, list) and len(completion) > n_prompt and completion[:n_prompt] == prompt
    position = index if repeats else index - n_prompt
    return completion_field if isinstance(completion, str) else f"{completion_field}[{position}]"
