"""Every family's calls: what its grammar allows can be read, in pieces of any size."""

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.engines.structured.calls.families import UnknownFamily, find_call_syntax
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
from serving.engines.structured.constraint import Constraint, ConstraintState
from serving.engines.structured.grammar import GrammarInvalid, Vocabulary, compile_grammar, load_vocabulary
from tests.unit.serving.engines.structured.call_forms import FORMS, Call, CallForm
from tests.unit.serving.engines.structured.tokens import END_ID, SIZE, TOKENIZER
from trainers.configs.engines import ToolCallParser

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


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return load_vocabulary(TOKENIZER, SIZE, frozenset({END_ID}))


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


def compile_calls(vocabulary: Vocabulary, syntax: CallSyntax, tools: Sequence[Tool] = TOOLS) -> Any:
    return compile_grammar(vocabulary, "start: calls\n" + syntax.rules(vocabulary, tools, True, True))


def is_allowed(grammar: Any, vocabulary: Vocabulary, text: str) -> bool:
    matcher, ids = grammar.start(), vocabulary.encode(text)
    if matcher.validate_tokens(ids) != len(ids):
        return False
    matcher.consume_tokens(ids)
    return bool(matcher.is_accepting())


# Each is run for every family.
few_examples = settings(max_examples=20, deadline=None)
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


@each_form
def test_the_grammar_allows_what_is_read_and_then_an_end(form: CallForm, vocabulary: Vocabulary) -> None:
    grammar = compile_calls(vocabulary, syntax_of(form))
    rich = EXAMPLE | {
        "share": 0.5,
        "order": "up",
        "note": "n",
        "place": {"city": "Ulm", "near": {"city": ""}},
    }
    ordered = {name: rich[name] for name in SEARCH["properties"]}  # type: ignore[attr-defined]
    for calls in (CALLS, [("search", ordered)], [("search", {"query": ""})]):
        assert is_allowed(grammar, vocabulary, form.write(calls)), form.write(calls)


REFUSED: list[dict[str, Any]] = [
    {},
    {"limit": 1},
    {"query": "q", "limit": "many"},
    {"query": "q", "order": "left"},
    {"query": "q", "other": 1},
    {"query": "q", "tags": [1]},
    {"query": "q", "place": {"near": {}}},
]


@each_form
@pytest.mark.parametrize("arguments", REFUSED, ids=json.dumps)
def test_the_grammar_allows_no_arguments_that_the_schema_refuses(
    form: CallForm, arguments: dict[str, Any], vocabulary: Vocabulary
) -> None:
    grammar = compile_calls(vocabulary, syntax_of(form))
    assert not is_allowed(grammar, vocabulary, form.write([("search", arguments)]))


@each_form
def test_a_call_that_has_begun_after_free_text_is_in_the_grammar(
    form: CallForm, vocabulary: Vocabulary
) -> None:
    syntax = syntax_of(form)
    grammar = compile_grammar(vocabulary, "start: calls\n" + syntax.rules(vocabulary, TOOLS, False, True))
    state = ConstraintState(Constraint(grammar, vocabulary, frozenset({END_ID}), syntax.trigger(TOOLS)))
    free = "" if syntax.only_at_start else "So < be it: "
    for character in free:
        state.advance(vocabulary.encode(character)[0], character)
        assert not state.in_force
    text = form.write([("search", {"query": "QUERY"})])
    for token in vocabulary.encode(text[: text.index("QUERY")]):
        state.advance(token, TOKENIZER.backend_tokenizer.decode([token], skip_special_tokens=False))
    assert state.in_force and state.error is None
    assert state.allows(vocabulary.encode("x")[0])
    assert not state.allows(END_ID)


STRINGS: list[tuple[dict[str, Any], str, str]] = [
    ({"minLength": 2, "maxLength": 3}, "ab", "abcd"),
    ({"pattern": "^[a-c]+$"}, "abc", "abd"),
    ({"pattern": "b/"}, "ab/c", "ac"),
    ({"format": "date"}, "2026-11-29", "2026-13-29"),
    ({"format": "uuid"}, "123e4567-e89b-12d3-a456-426614174000", "123e4567"),
    ({"enum": ["a", "b\nc"]}, "b\nc", "c"),
]


@each_form
@pytest.mark.parametrize(("schema", "good", "bad"), STRINGS, ids=lambda value: json.dumps(value))
def test_the_bounds_of_a_string_are_enforced(
    form: CallForm, schema: dict[str, Any], good: str, bad: str, vocabulary: Vocabulary
) -> None:
    parameters = {"type": "object", "properties": {"s": {"type": "string", **schema}}, "required": ["s"]}
    tool = Tool("f", {**parameters, "additionalProperties": False}, True, {})
    grammar = compile_calls(vocabulary, syntax_of(form), [tool])
    assert is_allowed(grammar, vocabulary, form.write([("f", {"s": good})]))
    assert not is_allowed(grammar, vocabulary, form.write([("f", {"s": bad})]))


@pytest.mark.parametrize("name", ["qwen3_coder", "gemma4", "pythonic"])
def test_a_keyword_that_a_form_cannot_enforce_is_refused_by_name_in_strict_tools_only(
    name: str, vocabulary: Vocabulary
) -> None:
    schema = {"type": "object", "properties": {"s": {"type": "object", "propertyNames": {"pattern": "a"}}}}
    syntax = syntax_of(FORMS[name])
    with pytest.raises(GrammarInvalid, match=r"the keyword '?\"?propertyNames"):
        compile_calls(vocabulary, syntax, [Tool("f", schema, True, {})])
    compile_calls(vocabulary, syntax, [Tool("f", schema, False, {})])


@each_form
def test_a_tool_whose_schema_says_nothing_may_get_any_arguments(
    form: CallForm, vocabulary: Vocabulary
) -> None:
    tool = Tool("f", {"type": "object"}, False, {})
    grammar = compile_calls(vocabulary, syntax_of(form), [tool])
    for arguments in ({}, {"a": "x"}, {"a": "x", "b": "y"}):
        assert is_allowed(grammar, vocabulary, form.write([("f", arguments)])), form.write([("f", arguments)])


CYCLES: list[Any] = [
    {"anyOf": [{"$ref": "#/properties/s"}, {"$ref": "#/properties/s"}]},
    {"$ref": "#/properties/s"},
    {"allOf": [{"$ref": "#/properties/s"}]},
    {"$ref": "other.json"},
]


@pytest.mark.parametrize("name", ["qwen3_coder", "gemma4", "pythonic"])
@pytest.mark.parametrize("schema", CYCLES, ids=json.dumps)
def test_a_schema_that_never_ends_is_refused(name: str, schema: Any, vocabulary: Vocabulary) -> None:
    tool = Tool("f", {"type": "object", "properties": {"s": schema}, "required": ["s"]}, False, {})
    with pytest.raises(GrammarInvalid):
        compile_calls(vocabulary, syntax_of(FORMS[name]), [tool])


def test_outer_tags_that_a_model_leaves_out_are_not_needed(vocabulary: Vocabulary) -> None:
    syntax = syntax_of(FORMS["qwen3_coder"])
    text = "<function=search>\n<parameter=query>\nx\n</parameter>\n</function>"
    assert decode(read(syntax, list(text))) == expected([("search", {"query": "x"})])
    assert is_allowed(compile_calls(vocabulary, syntax), vocabulary, text)


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
