"""The text and the tool calls of a completion, as TRL passes it to rewards."""

from collections.abc import Sequence
from typing import Any

Completion = str | list[dict[str, Any]]


def completion_text(completion: Completion) -> str:
    """Return the text of a completion: a string, or the content of its last assistant message."""
    if isinstance(completion, str):
        return completion
    content = _last_message(completion).get("content")
    if isinstance(content, list):
        return "".join(piece.get("text") or "" for piece in content)
    return content or ""


def completion_tool_calls(completion: Completion) -> Sequence[dict[str, Any]]:
    """Return the tool calls of the last assistant message."""
    return () if isinstance(completion, str) else _last_message(completion).get("tool_calls") or ()


def _last_message(completion: list[dict[str, Any]]) -> dict[str, Any]:
    return next((message for message in reversed(completion) if message.get("role") == "assistant"), {})
