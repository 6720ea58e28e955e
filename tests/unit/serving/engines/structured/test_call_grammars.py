"""Every family's grammar: what it allows is read, and follows the schemas of the tools."""

import contextlib
import json
import random
from collections.abc import Sequence
from typing import Any

import jsonschema
import pytest

from serving.engines.structured.calls.parser import ArgumentsDelta, CallBegin, CallEnd, CallParser
from serving.engines.structured.calls.syntax import CallSyntax
from serving.engines.structured.calls.tool import Tool
from serving.engines.structured.constraint import Constraint, ConstraintState
from serving.engines.structured.grammar import GrammarInvalid, Vocabulary, compile_grammar, load_vocabulary
from serving.engines.structured.json_schema import SchemaTooComplex
from tests.unit.serving.engines.structured.call_cases import (
    BOUNDED,
    BOUNDED_TOOL,
    CALLS,
    EXAMPLE,
    SEARCH,
    TOOLS,
    decode,
    expected,
    read,
    syntax_of,
)
from tests.unit.serving.engines.structured.call_forms import FORMS, CallForm
from tests.unit.serving.engines.structured.tokens import END_ID, SIZE, TOKENIZER

each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return load_vocabulary(TOKENIZER, SIZE, frozenset({END_ID}))


def compile_calls(
    vocabulary: Vocabulary, syntax: CallSyntax, tools: Sequence[Tool] = TOOLS, parallel: bool = True
) -> Any:
    return compile_grammar(vocabulary, "start: calls\n" + syntax.rules(vocabulary, tools, parallel, True))


def is_allowed(grammar: Any, vocabulary: Vocabulary, text: str) -> bool:
    matcher, ids = grammar.start(), vocabulary.encode(text)
    if matcher.validate_tokens(ids) != len(ids):
        return False
    matcher.consume_tokens(ids)
    return bool(matcher.is_accepting())


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
def test_whatever_the_grammar_generates_is_read_as_arguments_of_the_schema(
    form: CallForm, vocabulary: Vocabulary
) -> None:
    syntax = syntax_of(form)
    grammar = compile_calls(vocabulary, syntax, [BOUNDED_TOOL], parallel=False)
    for seed in range(5):
        text = generate(grammar, random.Random(seed))
        parser = CallParser(syntax, [BOUNDED_TOOL])
        events = [event for character in text for event in parser.push(character)]
        deltas = [event for event in events if isinstance(event, ArgumentsDelta)]
        jsonschema.validate(json.loads("".join(delta.text for delta in deltas)), BOUNDED)
        assert [event for event in events if not isinstance(event, ArgumentsDelta)] == [
            CallBegin("f"),
            CallEnd(),
        ]


def generate(grammar: Any, source: random.Random) -> str:
    """Return a call whose tokens are drawn evenly among those that the grammar allows."""
    matcher, ids = grammar.start(), []
    while not matcher.is_accepting():
        bits = matcher.compute_bitmask()
        ids.append(source.choice([token for token in range(SIZE) if bits[token // 8] >> token % 8 & 1]))
        matcher.consume_token(ids[-1])
    return str(TOKENIZER.backend_tokenizer.decode(ids, skip_special_tokens=False))


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


MARKUP = ["", " a", "a\nb", "a>b", "</parameter>", "</arg_value>", "</tool_call>", "<escape>", '<|"|>', "a/b"]


@each_form
@pytest.mark.parametrize("text", MARKUP)
def test_names_and_constants_that_the_form_cannot_express_are_refused(
    form: CallForm, text: str, vocabulary: Vocabulary
) -> None:
    syntax = syntax_of(form)
    for name, value in ((text, "x"), ("v", text)):
        schema = {"type": "object", "properties": {name: {"enum": [value]}}, "required": [name]}
        tool = Tool("f", schema, False, {})
        try:
            compile_calls(vocabulary, syntax, [tool])
        except GrammarInvalid:
            continue
        parser = CallParser(syntax, [tool])
        events = parser.push(form.write([("f", {name: value})]))
        arguments = "".join(event.text for event in events if isinstance(event, ArgumentsDelta))
        assert json.loads(arguments) == {name: value}


MALFORMED: list[dict[str, Any]] = [
    {"type": None},
    {"type": [5]},
    {"required": [5]},
    {"required": [["a"]]},
    {"required": "abc"},
    {"properties": ["a"]},
    {"enum": "abc"},
    {"anyOf": "abc"},
    {"allOf": {}},
    {"type": "string", "format": {}},
    {"type": "array", "minItems": "3"},
]


@each_form
@pytest.mark.parametrize("value", MALFORMED, ids=json.dumps)
def test_schemas_that_are_none_are_refused(
    form: CallForm, value: dict[str, Any], vocabulary: Vocabulary
) -> None:
    for schema in ({"type": "object", "properties": {"v": value}}, {"type": "object", **value}):
        # Those of JSON may ignore a keyword of another type.
        with contextlib.suppress(GrammarInvalid):
            compile_calls(vocabulary, syntax_of(form), [Tool("f", schema, False, {})])


@pytest.mark.parametrize("name", ["pythonic", "gemma4", "qwen3_coder", "glm45"])
def test_a_short_schema_with_very_long_rules_is_refused(name: str, vocabulary: Vocabulary) -> None:
    syntax = syntax_of(FORMS[name])
    members: dict[str, Any] = {f"p{number}": {} for number in range(1000)}
    value = {"type": "object", "properties": members, "anyOf": [{}] * 250}
    values = {f"v{number}": value for number in range(3)}
    for tools in ([values], [{"v": value}] * 3):
        schemas = [{"type": "object", "properties": properties} for properties in tools]
        named = [Tool(f"f{number}", schema, False, {}) for number, schema in enumerate(schemas)]
        with pytest.raises(SchemaTooComplex, match="with all alternatives"):
            syntax.rules(vocabulary, named, True, True)
