"""What tells rows apart: their canonical content, its hash, and the text that a model reads of them."""

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


def fingerprint(value: Any, seed: int = 0) -> int:
    """64 bits that depend on the content and the seed only, not on the order of keys or the machine."""
    content = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    digest = hashlib.blake2b(content.encode(), digest_size=8, key=str(seed).encode())
    return int.from_bytes(digest.digest())


def content_digest(row: Row, row_format: RowFormat) -> bytes:
    """16 bytes that are equal for rows which train a model alike, however they are spelled.

    Fields that no trainer reads, such as an id, do not count.
    """
    if row_format.has_pairs:
        content: Any = preference_messages(row)
    elif row_format is RowFormat.prompt_completion:
        content = prompt_completions(row, row_format)
    else:
        content = weighted_messages(row, row_format)
    text = json.dumps([content, offered_tools(row)], ensure_ascii=False, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def row_text(row: Row, row_format: RowFormat) -> str:
    """All that is said in a row, one turn a line; of a preference row, both answers."""
    if row_format.has_pairs:
        return _joined([message for part in preference_messages(row) for message in part])
    return _joined(weighted_messages(row, row_format))


def prompt_text(row: Row, row_format: RowFormat) -> str:
    """What the model is asked in a row, without system turns: all up to the first answer that is trained."""
    if row_format.has_pairs:
        prompt = preference_messages(row)[0]
    else:
        prompt = prompt_completions(row, row_format)[0][0]
    return _joined([message for message in prompt if message["role"] != "system"])


def _joined(messages: list[Message]) -> str:
    return "\n".join(message["content"] for message in messages)
