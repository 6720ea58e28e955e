"""Identity of rows: their canonical content, its hash, and their text."""

import hashlib
import json
from typing import Any

from trainers.data.conversation import (
    offered_tools,
    preference_messages,
    prompt_completions,
    weighted_messages,
)
from trainers.data.formats import Message, Row, RowFormat
from trainers.data.texts.folding import fold_text


def fingerprint(value: Any, seed: int = 0) -> int:
    """Return 64 bits that depend on content and seed only, not on the order of keys or the machine."""
    content = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    digest = hashlib.blake2b(content.encode(), digest_size=8, key=str(seed).encode())
    return int.from_bytes(digest.digest())


def content_digest(row: Row, row_format: RowFormat) -> bytes:
    """Return 16 bytes that are equal for rows with the same content, as people read it.

    Fields that no trainer reads, such as an id, are ignored.
    """
    if row_format.has_pairs:
        content: Any = preference_messages(row)
    elif row_format is RowFormat.prompt_completion:
        content = prompt_completions(row, row_format)
    else:
        content = weighted_messages(row, row_format)
    return value_digest([content, offered_tools(row)])


def value_digest(value: Any) -> bytes:
    """Return 16 bytes that are equal for values whose texts are the same, as people read them."""
    text = json.dumps(_fold_texts(value), ensure_ascii=False, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def text_digest(text: str) -> bytes:
    """Return 16 bytes that are equal for texts that are the same, as people read them."""
    return hashlib.blake2b(fold_text(text).encode(), digest_size=16).digest()


def row_text(row: Row, row_format: RowFormat) -> str:
    """Return the text of all messages of a row, one per line; both completions of a preference row."""
    if row_format.has_pairs:
        return _join_texts([message for part in preference_messages(row) for message in part])
    return _join_texts(weighted_messages(row, row_format))


def prompt_text(row: Row, row_format: RowFormat, *, with_system: bool = False) -> str:
    """Return all messages of a row before the first trained completion, without or with system messages.

    For a row of `text` it is that text.
    """
    if row_format is RowFormat.text:
        return row_text(row, row_format)
    if row_format.has_pairs:
        prompt = preference_messages(row)[0]
    elif row_format is RowFormat.prompt:
        prompt = weighted_messages(row, row_format)
    else:
        prompt = prompt_completions(row, row_format)[0][0]
    return _join_texts([message for message in prompt if with_system or message["role"] != "system"])


def _fold_texts(value: Any) -> Any:
    if isinstance(value, str):
        return fold_text(value)
    if isinstance(value, dict):
        return {key: _fold_texts(part) for key, part in value.items()}
    return [_fold_texts(part) for part in value] if isinstance(value, list | tuple) else value


def _join_texts(messages: list[Message]) -> str:
    return "\n".join(message["content"] for message in messages)
