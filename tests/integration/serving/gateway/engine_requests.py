"""Requests that every engine must serve alike, and the shapes of the responses."""

import json
from collections.abc import Iterator
from typing import Any

import httpx2

HELLO = [{"role": "user", "content": "hello"}]
PAINT = [{"role": "user", "content": "paint it red"}]
SCHEMA = {
    "type": "object",
    "properties": {"color": {"type": "string", "enum": ["red", "green"]}},
    "required": ["color"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "paint", "strict": True, "parameters": SCHEMA}}
FLAT_TOOL = {"type": "function", **TOOL["function"]}  # type: ignore[dict-item]
NAMED = {"type": "function", "function": {"name": "paint"}}
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "color", "schema": SCHEMA, "strict": True}}
CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
STREAM = {"stream": True}
WITH_USAGE = {"stream": True, "stream_options": {"include_usage": True}}
TOO_LONG = [{"role": "user", "content": "word " * 2000}]
RESULT = [
    *PAINT,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "paint", "arguments": '{"color":"red"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "painted"},
]


def chat(messages: Any = HELLO, **fields: Any) -> tuple[str, dict[str, Any]]:
    return CHAT, {"messages": messages, "temperature": 0, "max_tokens": 40, **fields}


def complete(**fields: Any) -> tuple[str, dict[str, Any]]:
    return COMPLETIONS, {"prompt": "hello", "temperature": 0, "max_tokens": 5, **fields}


def respond(**fields: Any) -> tuple[str, dict[str, Any]]:
    return RESPONSES, {"input": "hello", "temperature": 0, "max_output_tokens": 40, **fields}


REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": chat(),
    "chat stream": chat(**STREAM),
    "chat stream with usage": chat(**WITH_USAGE),
    "chat stream without usage": chat(stream=True, stream_options={"include_usage": False}),
    "chat logprobs": chat(logprobs=True, top_logprobs=2, max_tokens=3),
    "chat logprobs stream": chat(logprobs=True, top_logprobs=2, max_tokens=3, **STREAM),
    "chat n": chat(n=2, max_tokens=3, temperature=1),
    "chat n stream": chat(n=2, max_tokens=3, temperature=1, **STREAM),
    "chat stop": chat(stop=["둘"]),
    "chat stop stream": chat(stop=["둘"], **STREAM),
    "chat length": chat(max_tokens=3),
    "chat seed": chat(seed=3, temperature=1, max_tokens=3),
    "chat system": chat([{"role": "system", "content": "Count."}, *HELLO]),
    "chat parts": chat([{"role": "user", "content": [{"type": "text", "text": "hello"}]}]),
    "json_object": chat(response_format={"type": "json_object"}),
    "json_schema": chat(response_format=JSON_SCHEMA),
    "json_schema stream": chat(response_format=JSON_SCHEMA, **STREAM),
    "tools auto called": chat(PAINT, tools=[TOOL], max_tokens=80),
    "tools auto called stream": chat(PAINT, tools=[TOOL], max_tokens=80, **WITH_USAGE),
    "tools auto not called": chat(tools=[TOOL]),
    "tools auto not called stream": chat(tools=[TOOL], **STREAM),
    "tools none": chat(tools=[TOOL], tool_choice="none"),
    "tools required": chat(PAINT, tools=[TOOL], tool_choice="required", max_tokens=80),
    "tools required stream": chat(PAINT, tools=[TOOL], tool_choice="required", max_tokens=80, **STREAM),
    "tools named": chat(PAINT, tools=[TOOL], tool_choice=NAMED, max_tokens=80),
    "tools named stream": chat(PAINT, tools=[TOOL], tool_choice=NAMED, max_tokens=80, **STREAM),
    "tools not parallel": chat(
        PAINT, tools=[TOOL], tool_choice="required", parallel_tool_calls=False, max_tokens=80
    ),
    "tools cut off": chat(PAINT, tools=[TOOL], max_tokens=40),
    "tools result": chat(RESULT, tools=[TOOL]),
    "completion": complete(),
    "completion stream": complete(**STREAM),
    "completion stream with usage": complete(**WITH_USAGE),
    "completion echo": complete(echo=True),
    "completion logprobs": complete(logprobs=2),
    "completion echo logprobs": complete(echo=True, logprobs=2),
    "completion prompts": complete(prompt=["hello", "count"]),
    "completion suffix": complete(suffix="x"),
    "completion no tokens": complete(echo=True, max_tokens=0, logprobs=1),
    "response": respond(),
    "response stream": respond(**STREAM),
    "response length": respond(max_output_tokens=16),
    "response instructions": respond(instructions="Count."),
    "response schema": respond(text={"format": {"type": "json_schema", "name": "c", "schema": SCHEMA}}),
    "response tools": respond(input="paint it red", tools=[FLAT_TOOL], max_output_tokens=80),
    "response tools stream": respond(input="paint it red", tools=[FLAT_TOOL], max_output_tokens=80, **STREAM),
    "error tool_choice unknown": chat(tools=[TOOL], tool_choice="sometimes"),
    "error tool_choice without tools": chat(tool_choice="required"),
    "error tool_choice names none": chat(
        tools=[TOOL], tool_choice={"type": "function", "function": {"name": "draw"}}
    ),
    "error role": chat([{"role": "bananas", "content": "x"}]),
    "error no content": chat([{"role": "user"}]),
    "error no messages": chat([]),
    "error messages type": chat("hello"),
    "error too long": chat(TOO_LONG),
    "error max_tokens above the window": chat(max_tokens=4096),
    "error temperature": chat(temperature=-1),
    "error temperature type": chat(temperature="hot"),
    "error n": chat(n=0),
    "error top_logprobs": chat(logprobs=True, top_logprobs=99),
    "error response_format": chat(response_format={"type": "xml"}),
    "error schema": chat(
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "banana"}}}
    ),
    "error completion too long": complete(prompt="word " * 2000),
    "error completion without prompt": (COMPLETIONS, {"max_tokens": 1}),
    "error response too long": respond(input="word " * 2000),
    "error response previous": respond(previous_response_id="resp_unknown"),
}


def send(url: str, model: str, name: str) -> Any:
    """Return the status and the shape of the response to a request."""
    path, fields = REQUESTS[name]
    response = httpx2.post(url + path, json={"model": model, **fields}, timeout=120)
    kind = response.headers["content-type"].partition(";")[0]
    if kind == "text/event-stream":
        return {"status": response.status_code, "events": list(_event_shapes(response.text))}
    return {"status": response.status_code, "type": kind, "body": shape_of(response.json())}


def _event_shapes(text: str) -> Iterator[Any]:
    """Yield the shapes of events; repeated ones are one."""
    last = None
    for block in text.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        shape = {"event": lines.get("event"), "data": "[DONE]"}
        if lines["data"] != "[DONE]":
            shape["data"] = shape_of(json.loads(lines["data"]))
        if shape != last:
            yield shape
        last = shape


# Whose values are part of the contract.
VALUES = {
    "object",
    "finish_reason",
    "role",
    "type",
    "code",
    "param",
    "status",
    "reason",
    "tool_choice",
    "phase",
}


def shape_of(value: Any, key: str = "") -> Any:
    """Return a value with the names of types in place of what differs between completions."""
    if key in VALUES and not isinstance(value, dict | list):
        return value
    if isinstance(value, dict):
        if key == "top_logprobs":
            # By the texts of tokens.
            return "logprobs by text"
        return {name: shape_of(member, name) for name, member in sorted(value.items()) if member is not None}
    if key == "bytes":
        return "bytes"
    if isinstance(value, list):
        shapes: list[Any] = []
        for member in value:
            shape = shape_of(member, key if isinstance(member, dict) and "token" not in member else "")
            if shape not in shapes:
                shapes.append(shape)
        return shapes
    return (
        "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__
    )
