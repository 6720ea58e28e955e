"""Every family's calls are read from pieces of any size, and a model's family is found."""

import json
from typing import Any

import pytest
from hypothesis import given, settings

from serving.engines.structured.calls.families import UnknownFamily, find_call_syntax
from serving.engines.structured.calls.parser import ArgumentsDelta, CallBegin, CallParser, TextDelta
from serving.engines.structured.calls.tagged import convert
from serving.engines.structured.calls.tool import Tool
from tests.unit.serving.engines.structured.call_cases import (
    ALONE,
    ARGUMENTS,
    CALLS,
    EXAMPLE,
    PLACES,
    cut,
    decode,
    expected,
    read,
    syntax_of,
)
from tests.unit.serving.engines.structured.call_forms import FORMS, Call, CallForm
from trainers.configs.engines import ToolCallParser

# Each is run for every family, with the same examples in each run of CI.
few_examples = settings(max_examples=20, derandomize=True, deadline=None, database=None)
each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


@each_form
def test_calls_are_read_from_two_pieces_cut_anywhere_and_from_single_characters(form: CallForm) -> None:
    syntax, text = syntax_of(form), form.write(CALLS)
    assert decode(read(syntax, list(text))) == expected(CALLS)
    for place in range(len(text)):
        assert decode(read(syntax, [text[:place], text[place:]])) == expected(CALLS)


@each_form
@few_examples
@given(arguments=ARGUMENTS, places=PLACES)
def test_any_arguments_are_read_from_pieces_of_any_size(
    form: CallForm, arguments: dict[str, Any], places: set[int]
) -> None:
    calls: list[Call] = [("get-time.now", {}), ("search", arguments)]
    assert decode(read(syntax_of(form), cut(form.write(calls), places))) == expected(calls)


@each_form
def test_a_tool_whose_name_begins_with_that_of_another_is_called(form: CallForm) -> None:
    tools = [Tool(name, {"type": "object"}, False, {}) for name in ("get", "get_time", "get_time.now")]
    for name in ("get", "get_time", "get_time.now"):
        for values in ({}, {"zone": "Oslo"}):
            parser = CallParser(syntax_of(form), tools)
            events = [event for piece in form.write([(name, values)]) for event in parser.push(piece)]
            assert [event.name for event in events if isinstance(event, CallBegin)] == [name]
            text = "".join(event.text for event in events if isinstance(event, ArgumentsDelta))
            assert json.loads(text) == values


MARKS = ["</parameter>", "\n</parameter>\n", "</arg_value>", "</tool_call>", '"]}', "\\"]


@each_form
@few_examples
@given(places=PLACES)
def test_objects_and_arrays_may_contain_the_marks_of_the_form(form: CallForm, places: set[int]) -> None:
    values: dict[str, Any] = {"tags": MARKS, "place": {"city": "".join(MARKS)}}
    types: dict[str, Any] = {"tags": {"type": "array"}, "place": {"type": "object"}}
    parser = CallParser(syntax_of(form), [Tool("f", {"type": "object", "properties": types}, False, {})])
    pieces = cut(form.write([("f", values)]), places)
    events = [event for piece in pieces for event in parser.push(piece)]
    assert json.loads("".join(event.text for event in events if isinstance(event, ArgumentsDelta))) == values
    assert not any(isinstance(event, TextDelta) for event in events)


def test_a_text_is_no_object_where_it_is_an_array() -> None:
    assert convert("[1]", frozenset({"string", "object"})) == "[1]"
    assert convert('{"a": 1}', frozenset({"string", "array"})) == '{"a": 1}'
    assert convert("[1]", frozenset({"array", "object"})) == [1]


@pytest.mark.parametrize("name", [name for name in FORMS if name not in ALONE])
@few_examples
@given(places=PLACES)
def test_text_before_calls_is_content_without_the_space_between(name: str, places: set[int]) -> None:
    form = FORMS[name]
    pieces = cut(f"I look < it up.\n{form.write(CALLS)}\n", places)
    assert decode(read(syntax_of(form), pieces)) == [TextDelta("I look < it up."), *expected(CALLS)]


@each_form
@few_examples
@given(places=PLACES)
def test_text_after_calls_keeps_its_spaces(form: CallForm, places: set[int]) -> None:
    """Only a completion whose calls the grammar could not take over has text after them."""
    pieces = cut(f"{form.write(CALLS)}\nThat is; all,\n I know. ", places)
    assert decode(read(syntax_of(form), pieces)) == [*expected(CALLS), TextDelta("That is; all,\n I know. ")]


@each_form
@pytest.mark.parametrize(
    "text",
    [
        "a < b",
        "<tool_call",
        '{"name": "unknown", "arguments": {}}',
        "[TOOL",
        "functools",
        "{",
        "[other(a=1)]",
    ],
)
def test_text_that_is_no_call_is_content(form: CallForm, text: str) -> None:
    assert read(syntax_of(form), list(text)) == [TextDelta(text)]


@each_form
@pytest.mark.parametrize("size", [0.3, 0.6, 0.9])
def test_a_completion_that_is_cut_off_has_the_beginning_of_the_arguments(form: CallForm, size: float) -> None:
    syntax, text = syntax_of(form), form.write([("search", EXAMPLE)])
    whole = read(syntax, [text])[1]
    cut_off = [
        event for event in read(syntax, [text[: int(size * len(text))]]) if isinstance(event, ArgumentsDelta)
    ]
    assert isinstance(whole, ArgumentsDelta)
    assert all(whole.text.startswith(event.text) for event in cut_off)


def test_a_family_can_be_chosen_where_the_template_shows_none() -> None:
    with pytest.raises(UnknownFamily, match="does not show"):
        find_call_syntax("{{ messages }}", None)
    assert find_call_syntax("{{ messages }}", ToolCallParser.llama3).family is ToolCallParser.llama3
    for family in ToolCallParser:
        assert find_call_syntax("{{ messages }}", family).family in (family, ToolCallParser.pythonic)


def test_a_form_that_is_not_read_here_is_named() -> None:
    with pytest.raises(UnknownFamily, match="gpt-oss"):
        find_call_syntax("<|start|>assistant<|channel|>commentary", None)
    with pytest.raises(UnknownFamily, match="kimi_k2"):
        find_call_syntax("<|tool_calls_section_begin|>", None)


def test_a_model_whose_tokens_alone_show_its_family_is_found() -> None:
    found = find_call_syntax("List of tools: [", None, ["<|tool_call_start|>"])
    assert found.family is ToolCallParser.lfm2
