"""The input of a response as a list of items with ids, which is how it is stored."""

from typing import Any

from app.tables.base import new_id

Json = dict[str, Any]

# The prefixes of OpenAI's ids by type of the item.
PREFIXES = {"function_call": "fc", "function_call_output": "fco", "reasoning": "rs", "message": "msg"}


def normalize_input(value: Any) -> list[Json]:
    """Return the items of an input, which is a text or a list; raises ValueError for anything else."""
    if isinstance(value, str):
        return [_normalize({"role": "user", "content": value})]
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError("the input is neither a text nor a list of items")
    return [_normalize(item) for item in value]


def _normalize(item: Json) -> Json:
    kind = item.get("type") or "message"
    head = {"id": item.get("id") or new_id(PREFIXES.get(kind, "item")), "type": kind}
    if kind != "message":
        return {**head, **{name: value for name, value in item.items() if name not in head}}
    content = item.get("content")
    if isinstance(content, str):
        is_output = item.get("role") == "assistant"
        part: Json = {"type": "output_text" if is_output else "input_text", "text": content}
        content = [part | {"annotations": []} if is_output else part]
    rest = {name: value for name, value in item.items() if name not in (*head, "content", "status")}
    return {**head, "status": item.get("status") or "completed", **rest, "content": content}
