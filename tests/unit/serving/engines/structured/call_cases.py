"""Calls that every family writes, and what is read from them."""

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from hypothesis import strategies as st

from serving.engines.structured.calls.families import find_call_syntax
from serving.engines.structured.calls.parser import (
    ArgumentsDelta,
    CallBegin,
    CallEnd,
    CallParser,
    OutputEvent,
    TextDelta,
)
from serving.engines.structured.calls.syntax import CallSyntax
from serving.engines.structured.calls.tool import Tool
from tests.unit.serving.engines.structured.call_forms import Call, CallForm

SEARCH = {
    "type": "object",
    "properties": {
        "query": {"type": "string"},
        "limit": {"type": "integer"},
        "exact": {"type": "boolean"},
        "share": {"type": "number"},
        "order": {"enum": ["up", "down"]},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "tags": {"type": "array", "items": {"type": "string"}},
        "place": {"$ref": "#/$defs/place"},
    },
    "required": ["query"],
    "additionalProperties": False,
    "$defs": {
        "place": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "near": {"$ref": "#/$defs/place"}},
            "required": ["city"],
            "additionalProperties": False,
        }
    },
}
NOW = {"type": "object", "properties": {}, "additionalProperties": False}
TOOLS = [Tool("search", SEARCH, True, {}), Tool("get-time.now", NOW, False, {})]
# Each value is bounded, so that every call ends.
BOUNDED: dict[str, Any] = {
    "type": "object",
    "properties": {
        "color": {"enum": ["red", "green"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 9},
        "note": {"type": "string", "maxLength": 3},
        "sure": {"type": ["boolean", "null"]},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
        "place": {"$ref": "#/$defs/place"},
    },
    "required": ["color", "note", "sure", "place"],
    "additionalProperties": False,
    "$defs": {
        "place": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 2}},
            "required": ["city"],
            "additionalProperties": False,
        }
    },
}
BOUNDED_TOOL = Tool("f", BOUNDED, True, {})
EXAMPLE = {"query": 'a "b" <c> {d} [e]', "limit": -3, "exact": True, "note": None, "tags": ["x, y"]}
CALLS: list[Call] = [("search", EXAMPLE), ("get-time.now", {})]
# Families whose calls are the whole completion.
ALONE = {"llama3", "pythonic", "llama4_pythonic"}

TEXT = st.text(
    st.characters(codec="utf-8", exclude_characters="\r\x0b\x0c\x1c\x1d\x1e\x85", exclude_categories=["Cs"]),
    max_size=12,
)
PLACE = st.recursive(
    st.fixed_dictionaries({"city": TEXT}),
    lambda inner: st.fixed_dictionaries({"city": TEXT}, optional={"near": inner}),
    max_leaves=3,
)
ARGUMENTS = st.fixed_dictionaries(
    {"query": TEXT},
    optional={
        "limit": st.integers(-1000, 1000),
        "exact": st.booleans(),
        "share": st.floats(-100, 100).map(lambda value: round(value, 3)).filter(lambda value: value % 1 != 0),
        "order": st.sampled_from(["up", "down"]),
        "note": st.none() | TEXT.filter(lambda text: text.lower() != "null"),
        "tags": st.lists(TEXT, max_size=3),
        "place": PLACE,
    },
)
PLACES = st.sets(st.integers(0, 10_000), max_size=60)


def syntax_of(form: CallForm) -> CallSyntax:
    return find_call_syntax(form.template, None)


def read(syntax: CallSyntax, pieces: Sequence[str]) -> list[OutputEvent]:
    """Return the events of a completion, those of neighbouring texts joined."""
    parser = CallParser(syntax, TOOLS)
    events: list[OutputEvent] = []
    for event in [*(event for piece in pieces for event in parser.push(piece)), *parser.finish()]:
        last = events[-1] if events else None
        if isinstance(event, TextDelta) and isinstance(last, TextDelta):
            events[-1] = TextDelta(last.text + event.text)
        elif isinstance(event, ArgumentsDelta) and isinstance(last, ArgumentsDelta):
            events[-1] = ArgumentsDelta(last.text + event.text)
        else:
            events.append(event)
    return events


def decode(events: list[OutputEvent]) -> list[Any]:
    """Return events with the arguments as values."""
    return [json.loads(event.text) if isinstance(event, ArgumentsDelta) else event for event in events]


def expected(calls: Sequence[Call]) -> list[Any]:
    return [event for name, values in calls for event in (CallBegin(name), values, CallEnd())]


def cut(text: str, places: set[int]) -> list[str]:
    ends = sorted({0, len(text), *(place % len(text) for place in places)})
    return [text[start:end] for start, end in pairwise(ends)]
