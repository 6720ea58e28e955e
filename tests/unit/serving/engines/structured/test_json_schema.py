"""Schemas are bounded before they are compiled, and compiled as what they say."""

import json
from typing import Any

import pytest

from serving.engines.structured.grammar import GrammarInvalid, compile_grammar, load_vocabulary
from serving.engines.structured.json_schema import (
    MAX_RESOLVED_DEPTH,
    MAX_SCHEMA_CHARACTERS,
    SchemaTooComplex,
    json_rule,
    resolved_depth,
)
from tests.unit.serving.engines.structured.tokens import END_ID, SIZE, TOKENIZER

PAIR = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {}}, "required": ["a", "b"]}


def accepts(schema: dict[str, Any], text: str, *, compact: bool = True, lenient: bool = False) -> bool:
    vocabulary = load_vocabulary(TOKENIZER, SIZE, frozenset({END_ID}))
    rule = json_rule(schema, compact=compact, lenient=lenient)
    matcher = compile_grammar(vocabulary, f"start: {rule}").start()
    ids = vocabulary.encode(text)
    matcher.try_consume_tokens(ids[: matcher.validate_tokens(ids)])
    return bool(matcher.validate_tokens(ids) == 0 and matcher.is_accepting())


def chain(length: int) -> dict[str, Any]:
    """Return a schema whose definitions refer to each other, one after the other."""
    nodes: dict[str, Any] = {
        f"n{number}": {"type": "object", "properties": {"next": {"$ref": f"#/$defs/n{number + 1}"}}}
        for number in range(length)
    }
    return {"$ref": "#/$defs/n0", "$defs": {**nodes, f"n{length}": {"type": "integer"}}}


def test_white_space_is_limited_to_one_space_unless_it_may_be_any() -> None:
    for text in ('{"a":1,"b":[2,3]}', '{"a": 1, "b": [2, 3]}'):
        assert accepts(PAIR, text)
    pretty = json.dumps({"a": 1, "b": [2]}, indent=2)
    assert not accepts(PAIR, pretty)
    assert accepts(PAIR, pretty, compact=False)


def test_the_options_of_the_compiler_in_a_schema_are_not_used() -> None:
    own = PAIR | {"x-guidance": {"whitespace_flexible": True, "lenient": True}}
    assert not accepts(own, json.dumps({"a": 1, "b": 2}, indent=2))


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "array", "uniqueItems": True}, "the keyword 'uniqueItems' cannot be enforced"),
        ({"oneOf": [{"type": "integer"}, {"minimum": 5}]}, "oneOf constraints are not supported"),
        ({"type": "string", "format": "zip"}, "unknown format: zip"),
        ({"type": "string", "pattern": "(?!a)b"}, r"the pattern '\(\?!a\)b' cannot be used: look-around"),
        ({"$ref": "http://127.0.0.1:1/x"}, "is not present"),
    ],
)
def test_what_cannot_be_enforced_is_named(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(GrammarInvalid, match=message):
        accepts(schema, "")


def test_what_cannot_be_enforced_is_ignored_where_that_is_allowed() -> None:
    assert accepts({"type": "array", "uniqueItems": True}, "[1,1]", lenient=True)


def test_alternatives_with_distinct_constants_are_distinct() -> None:
    kinds = [{"type": "object", "properties": {"k": {"const": k}}, "required": ["k"]} for k in ("a", "b")]
    assert accepts({"oneOf": kinds}, '{"k":"b"}')


def test_a_chain_of_references_that_would_overflow_the_stack_is_refused() -> None:
    with pytest.raises(SchemaTooComplex, match="2,000"):
        accepts(chain(1000), "")
    longest = chain(MAX_RESOLVED_DEPTH // 3 - 2)
    assert MAX_RESOLVED_DEPTH - 10 < resolved_depth(longest) <= MAX_RESOLVED_DEPTH
    assert accepts(longest, "{}")


def test_a_recursive_schema_has_a_finite_depth() -> None:
    tree = {"type": "object", "properties": {"child": {"$ref": "#"}, "n": {"$ref": "#/properties/child"}}}
    assert resolved_depth(tree) < 12
    assert accepts(tree, '{"child":{"child":{}}}')


def test_a_schema_that_is_too_long_is_refused() -> None:
    with pytest.raises(SchemaTooComplex, match="characters"):
        accepts({"enum": ["x" * MAX_SCHEMA_CHARACTERS]}, "")
