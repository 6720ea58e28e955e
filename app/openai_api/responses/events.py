"""The stream of a stored response: the events that would have generated it in one piece."""

import json
from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]


def replay(response: Json, after: int | None) -> bytes:
    """Return the events of a response, without those up to the sequence number `after`."""
    first = 0 if after is None else after + 1
    numbered = enumerate(_list_events(response))
    return b"".join(_encode(number, event) for number, event in numbered if number >= first)


def _list_events(response: Json) -> Iterator[Json]:
    begun = response | {"status": "in_progress", "output": [], "usage": None, "completed_at": None}
    for kind in ("created", "in_progress"):
        yield {"type": f"response.{kind}", "response": begun | {"incomplete_details": None}}
    for index, item in enumerate(response["output"]):
        place = {"output_index": index}
        empty = {name: value[:0] for name in ("content", "arguments") if (value := item.get(name))}
        added = item | empty | ({"status": "in_progress"} if "status" in item else {})
        yield {"type": "response.output_item.added", **place, "item": added}
        named = {"item_id": item.get("id"), **place}
        if item.get("type") == "message":
            for part_index, part in enumerate(item["content"]):
                yield from _list_part_events({**named, "content_index": part_index}, part)
        elif item.get("type") == "function_call":
            done = {"name": item.get("name"), "arguments": item["arguments"]}
            kind = "response.function_call_arguments"
            yield {"type": f"{kind}.delta", **named, "delta": item["arguments"]}
            yield {"type": f"{kind}.done", **named, **done}
        yield {"type": "response.output_item.done", **place, "item": item}
    yield {"type": f"response.{response['status']}", "response": response}


def _list_part_events(place: Json, part: Json) -> Iterator[Json]:
    """Yield the events of a part of a message: a text or a refusal."""
    field = "refusal" if part["type"] == "refusal" else "text"
    kind = "response.refusal" if field == "refusal" else "response.output_text"
    logprobs = {} if field == "refusal" else {"logprobs": part.get("logprobs") or []}
    empty = part | {field: ""} | {name: [] for name in ("annotations", "logprobs") if name in part}
    yield {"type": "response.content_part.added", **place, "part": empty}
    yield {"type": f"{kind}.delta", **place, "delta": part[field], **logprobs}
    yield {"type": f"{kind}.done", **place, field: part[field], **logprobs}
    yield {"type": "response.content_part.done", **place, "part": part}


def _encode(number: int, event: Json) -> bytes:
    data = json.dumps({**event, "sequence_number": number}, ensure_ascii=False)
    return f"event: {event['type']}\ndata: {data}\n\n".encode("utf-8", "replace")
