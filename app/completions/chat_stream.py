"""The chat completion that the chunks of a stream add up to."""

from collections.abc import Iterator
from typing import Any

import msgspec

Json = dict[str, Any]

EVENT, DONE = b"data:", b"[DONE]"
# Texts of a delta that name something, and are not continued by the next delta.
NAMES = frozenset({"role", "type", "id", "name"})

_decode = msgspec.json.Decoder().decode


def assemble_completion(lines: bytes) -> Json:
    """Return the chat completion of a complete stream; raises ValueError if an event is not a chunk."""
    completion: Json = {}
    choices: dict[int, Json] = {}
    for chunk in _read_chunks(lines):
        for name, value in chunk.items():
            if name == "choices":
                for delta in value:
                    _add_choice(choices, delta)
            elif value is not None or name not in completion:
                completion[name] = value
    if "id" not in completion:
        raise ValueError("the stream has no chunk with an id")
    usage = completion.pop("usage", None)
    completion |= {"object": "chat.completion", "choices": [choices[index] for index in sorted(choices)]}
    return completion if usage is None else completion | {"usage": usage}


def _read_chunks(lines: bytes) -> Iterator[Json]:
    for line in lines.split(b"\n"):
        data = line.removeprefix(EVENT).strip()
        if line.startswith(EVENT) and data != DONE:
            chunk = _decode(data)
            if not isinstance(chunk, dict):
                raise ValueError("an event of the stream is not an object")
            yield chunk


def _add_choice(choices: dict[int, Json], delta: Json) -> None:
    index = delta.get("index", 0)
    choice = choices.setdefault(
        index,
        {
            "index": index,
            "message": {"role": "assistant", "content": None, "refusal": None},
            "logprobs": None,
            "finish_reason": None,
        },
    )
    for name, value in delta.items():
        if name == "delta":
            _merge(choice["message"], value or {})
        elif name == "logprobs":
            choice["logprobs"] = _merge_logprobs(choice["logprobs"], value)
        elif value is not None:
            choice[name] = value


def _merge(message: Json, delta: Json) -> None:
    """Add a delta to a message, or to a part of it such as a tool call."""
    for name, value in delta.items():
        known = message.get(name)
        if value is None:
            message.setdefault(name, None)
        elif name == "tool_calls":
            message[name] = _merge_tool_calls(known or [], value)
        elif isinstance(value, dict):
            message[name] = known or {}
            _merge(message[name], value)
        elif isinstance(value, str) and isinstance(known, str) and name not in NAMES:
            message[name] = known + value
        else:
            message[name] = value


def _merge_tool_calls(calls: list[Json], deltas: list[Json]) -> list[Json]:
    for delta in deltas:
        index = delta.get("index", 0)
        while len(calls) <= index:
            calls.append({})
        _merge(calls[index], {name: value for name, value in delta.items() if name != "index"})
    return calls


def _merge_logprobs(known: Json | None, delta: Json | None) -> Json | None:
    """Append the log-probabilities of a chunk to those of the chunks before."""
    if not delta:
        return known
    merged = dict(known or {})
    for name, entries in delta.items():
        merged[name] = [*(merged.get(name) or []), *entries] if entries else merged.get(name)
    return merged
