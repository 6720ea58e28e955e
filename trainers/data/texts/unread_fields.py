"""Fields of a row that no format reads, although they look like text for the model."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final

from trainers.data.conversation import has_history
from trainers.data.formats import FIELD_SETS, Row, RowFormat

# Names under which published data sets have text for the model; any other text is judged by its form.
CONTENT_FIELDS: Final = frozenset(
    {"system_prompt", "system_message", "instruction", "instructions", "input", "context", "contexts"}
    | {"document", "documents", "passage", "passages", "article", "body", "content", "text", "prompt"}
    | {"question", "query", "problem", "user", "human", "messages", "conversations", "conversation"}
    | {"dialogue", "dialog", "history", "examples", "few_shot", "completion", "response", "output", "answer"}
    | {"answers", "solution", "target", "reasoning", "reasoning_content", "thinking", "thought"}
    | {"rationale", "explanation", "chain_of_thought", "cot", "tool_calls", "function_call", "functions"}
    | {"label", "labels", "image", "images", "video", "videos", "audio", "audios"}
)
# Text that is this long and has as many words is a sentence rather than a name or a category.
MIN_PROSE_CHARACTERS: Final = 40
MIN_PROSE_WORDS: Final = 6
# Fields that every format with messages reads.
SHARED_FIELDS: Final = frozenset({"system", "tools"})

UnreadText = tuple[str, str, bool]
"""Path of a field, its text, and whether its name is one for text of the model."""


def unread_texts(row: Row, row_format: RowFormat, *, named_only: bool = False) -> Iterator[UnreadText]:
    """Yield the texts of a row that its format does not read and that look like text for the model.

    With `named_only`, only those whose field has a name for text of the model.
    """
    for name, is_named in _other_fields(tuple(row), row_format):
        if (is_named or not named_only) and row[name] and not (name == "history" and has_history(row)):
            yield from _content_texts(name, row[name], is_named)
    if row_format is RowFormat.sharegpt:
        for index, turn in enumerate(row["conversations"]):
            for name, value in turn.items() if len(turn) > 2 else ():
                is_named = name.lower() in CONTENT_FIELDS
                if name not in ("from", "value") and value and (is_named or not named_only):
                    yield from _content_texts(f"conversations[{index}].{name}", value, is_named)


# The rows of a file have the same few sets of fields.
@lru_cache(maxsize=256)
def _other_fields(names: tuple[str, ...], row_format: RowFormat) -> tuple[tuple[str, bool], ...]:
    """Return the fields of a row that its format does not read, and whether each has a name for text."""
    if row_format is RowFormat.prompt:
        return ()  # A grader may read any field.
    own = {*SHARED_FIELDS, *next(fields for fields in FIELD_SETS[row_format] if set(names) >= fields)}
    if row_format is RowFormat.text:
        own = {"text"}
    if row_format is RowFormat.alpaca:
        own.add("input")
    if row_format is RowFormat.preference:
        own.add("prompt")
    return tuple((name, name.lower() in CONTENT_FIELDS) for name in names if name not in own)


def _content_texts(path: str, value: Any, is_named: bool) -> Iterator[UnreadText]:
    for text in _texts(value):
        if is_named or (len(text) >= MIN_PROSE_CHARACTERS and len(text.split()) >= MIN_PROSE_WORDS):
            yield path, text, is_named


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts in a value, without the roles of messages."""
    if isinstance(value, str):
        if value.strip():
            yield value
    elif isinstance(value, list):
        for element in value:
            yield from _texts(element)
    elif isinstance(value, dict):
        for name, element in value.items():
            if name not in ("role", "from", "type", "id"):
                yield from _texts(element)
