"""The shapes in which a row of training data may be written, and how one is recognised."""

from enum import StrEnum
from typing import Any, Final

from trainers.data.llama import is_llama_text

Row = dict[str, Any]
Message = dict[str, Any]


class RowFormat(StrEnum):
    """How the rows of a dataset are written; a dataset has one format."""

    messages = "messages"
    prompt_completion = "prompt_completion"
    instruction = "instruction"
    alpaca = "alpaca"
    sharegpt = "sharegpt"
    question_answer = "question_answer"
    llama = "llama"
    preference = "preference"

    @property
    def has_pairs(self) -> bool:
        """Whether a row compares two answers, which is what DPO trains on."""
        return self is RowFormat.preference


# Preference comes first: published preference sets often carry `messages` or `completion` beside the pair.
FIELD_SETS: Final[dict[RowFormat, tuple[frozenset[str], ...]]] = {
    RowFormat.preference: (
        frozenset({"chosen", "rejected"}),
        frozenset({"input", "preferred_output", "non_preferred_output"}),
    ),
    RowFormat.messages: (frozenset({"messages"}),),
    RowFormat.sharegpt: (frozenset({"conversations"}),),
    RowFormat.prompt_completion: (frozenset({"prompt", "completion"}),),
    RowFormat.instruction: (frozenset({"instruction", "response"}),),
    RowFormat.alpaca: (frozenset({"instruction", "output"}),),
    RowFormat.question_answer: (frozenset({"question", "answer"}),),
    RowFormat.llama: (frozenset({"text"}),),
}

# The fields of a row that is one question and one answer: what is asked, and what is answered.
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
    """Names the format whose fields the row has; their types are left to validation."""
    return next((row_format for row_format in FIELD_SETS if has_format(row, row_format)), None)


def has_format(row: Row, row_format: RowFormat) -> bool:
    """Tells whether the row has the fields of this format, even if those of another are there too."""
    names = row.keys()
    for fields in FIELD_SETS[row_format]:
        if names >= fields:
            return row_format is not RowFormat.llama or is_llama_text(row["text"])
    return False


def is_openai_preference(row: Row) -> bool:
    """Tells OpenAI's preference fields (`input`, `preferred_output`, …) from `chosen` and `rejected`."""
    return "preferred_output" in row and "chosen" not in row
