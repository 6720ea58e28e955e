"""Formats of rows of training data, and their detection."""

from enum import StrEnum
from typing import Any, Final

from trainers.data.llama import is_llama_text

Row = dict[str, Any]
Message = dict[str, Any]


class RowFormat(StrEnum):
    """Format of the rows of a dataset; all rows have the same one."""

    messages = "messages"
    prompt = "prompt"  # A conversation without its completion, and fields for graders, as OpenAI's.
    prompt_completion = "prompt_completion"
    instruction = "instruction"
    alpaca = "alpaca"
    sharegpt = "sharegpt"
    question_answer = "question_answer"
    llama = "llama"
    text = "text"
    preference = "preference"

    @property
    def has_pairs(self) -> bool:
        """Whether a row is a preference pair, on which DPO trains."""
        return self is RowFormat.preference


# Preference is first: published preference data often has `messages` or `completion` next to the pair.
FIELD_SETS: Final[dict[RowFormat, tuple[frozenset[str], ...]]] = {
    RowFormat.preference: (
        frozenset({"chosen", "rejected"}),
        frozenset({"input", "preferred_output", "non_preferred_output"}),
    ),
    RowFormat.prompt: (frozenset({"messages"}),),
    RowFormat.messages: (frozenset({"messages"}),),
    RowFormat.sharegpt: (frozenset({"conversations"}),),
    RowFormat.prompt_completion: (frozenset({"prompt", "completion"}),),
    RowFormat.instruction: (frozenset({"instruction", "response"}),),
    RowFormat.alpaca: (frozenset({"instruction", "output"}),),
    RowFormat.question_answer: (frozenset({"question", "answer"}),),
    RowFormat.llama: (frozenset({"text"}),),
    # Last: rows of other formats may also have a field `text`.
    RowFormat.text: (frozenset({"text"}),),
}

_FIELDS_IN_ORDER: Final = [(row_format, fields) for row_format, sets in FIELD_SETS.items() for fields in sets]
# Formats with the same field, which its text tells apart.
_BY_TEXT: Final = frozenset({RowFormat.llama, RowFormat.text})

# Fields that belong to a conversation; a row of prompts has others, which its graders read.
CONVERSATION_FIELDS: Final = frozenset(
    {"messages", "system", "history", "tools", "functions", "parallel_tool_calls", "label"}
)

# The fields for prompt and completion in formats with a single exchange.
FLAT_FIELDS: Final = {
    RowFormat.instruction: ("instruction", "response"),
    RowFormat.alpaca: ("instruction", "output"),
    RowFormat.question_answer: ("question", "answer"),
}

MESSAGE_ROLES: Final = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
SHAREGPT_ROLES: Final = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "tool": "tool",
}


def detect_format(row: Row) -> RowFormat | None:
    """Return the format whose fields the row has, or None; validation checks their types."""
    names = row.keys()
    for row_format, fields in _FIELDS_IN_ORDER:
        if row_format is RowFormat.prompt and not _is_prompt(row):
            continue
        if names >= fields and (row_format not in _BY_TEXT or has_format(row, row_format)):
            return row_format
    return None


def _is_prompt(row: Row) -> bool:
    """Return whether a conversation waits for its completion, and has something to grade that by."""
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages or row.keys() <= CONVERSATION_FIELDS:
        return False
    last = messages[-1]
    return isinstance(last, dict) and last.get("role") in ("user", "tool")


def has_format(row: Row, row_format: RowFormat) -> bool:
    """Return whether the row has the fields of this format, possibly next to those of another."""
    names = row.keys()
    for fields in FIELD_SETS[row_format]:
        if names >= fields:
            # A text is a conversation if it begins like Llama's template, and otherwise a document.
            return row_format not in _BY_TEXT or is_llama_text(row["text"]) == (row_format is RowFormat.llama)
    return False


def is_openai_preference(row: Row) -> bool:
    """Return whether a preference row has OpenAI's fields (`input`, `preferred_output`, …)."""
    return "preferred_output" in row and "chosen" not in row
