"""Patterns and schemas: equal to `re` and to the package jsonschema, and bounded for any author."""

import re
import time
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.unit.trainers.metrics.general.conftest import make_row
from trainers.configs.metrics.general import JsonSchema, RegularExpression
from trainers.configs.parsing.json_schema import compile_schema
from trainers.metrics.general.patterns import JsonSchemaMetric, RegularExpressionMetric, parse_json

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": "^[A-Z가-힣]"}, "age": {"$ref": "#/$defs/age"}},
    "required": ["name"],
    "additionalProperties": False,
    "$defs": {"age": {"type": "integer", "minimum": 0}},
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 200) | st.sampled_from(["Kim", "kim", "김", "name", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "age", "x"]), inner, max_size=3)
    ),
    max_leaves=5,
)


def match(response: str, **config: Any) -> float:
    return RegularExpressionMetric(RegularExpression(**config)).score([make_row(response)]).value


def validate(response: str, **config: Any) -> dict[str, Any]:
    values = JsonSchemaMetric(JsonSchema(**{"json_schema": PERSON, **config})).score([make_row(response)])
    return {"value": values.value, **values.details}


@given(
    st.sampled_from([r"^\d+$", r"a+b", r"(?i)답: ?[0-9]+", r"^(yes|no)\b", r"[가-힣]{2}"]),
    st.text("ab0123 답:YESyesno서울\n", max_size=12),
)
def test_a_search_equals_that_of_python(pattern: str, text: str) -> None:
    # Python's `$` also matches before a final line end.
    assert match(text, pattern=pattern) == bool(re.search(pattern.replace("$", r"\Z"), text))


def test_a_whole_match_ignores_surrounding_white_space_only() -> None:
    assert match(" 42\n", pattern=r"\d+|x", whole=True) == 1
    assert match("42 x", pattern=r"\d+|x", whole=True) == 0


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*b", "(.*.*)*=", r"^(\w+\s?)*$"])
def test_a_pattern_that_stops_python_takes_no_time(pattern: str) -> None:
    begin = time.process_time()
    match("a" * 50_000 + "!", pattern=pattern)
    assert time.process_time() - begin < 2


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(?=a)b", "look-around"),
        (r"(a)\1", "backreferences are not supported"),
        ("(unclosed", "unclosed group"),
        (r"(\w{1,100}){1,100}", "exceeds size limit"),
        ("a" * 1001, "longer than 1,000 characters"),
    ],
)
def test_a_pattern_that_cannot_be_used_is_refused_in_the_config(pattern: str, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        RegularExpression(pattern=pattern)


def test_a_pattern_of_the_row_is_checked_before_anything_is_generated() -> None:
    metric = RegularExpressionMetric(RegularExpression(pattern_field="pattern"))
    assert metric.check_row(make_row(fields={"pattern": "^a"})) is None
    assert "must contain a pattern" in str(metric.check_row(make_row()))
    assert "unclosed group" in str(metric.check_row(make_row(fields={"pattern": "("})))
    assert metric.score([make_row("b", fields={"pattern": "^a"})]).value == 0


@given(JSON)
def test_validity_equals_that_of_the_package_jsonschema(value: Any) -> None:
    expected = jsonschema.Draft202012Validator(PERSON).is_valid(value)
    assert compile_schema(PERSON).is_valid(value) == expected


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ('{"name": "김철수", "age": 3}', {"value": 1, "not_json": 0, "not_valid": 0}),
        ('{"name": "kim"}', {"value": 0, "not_json": 0, "not_valid": 1}),
        ('Here it is: {"name": "Kim"}', {"value": 0, "not_json": 1, "not_valid": 0}),
        ('{"name": "Kim", "age": NaN}', {"value": 0, "not_json": 1, "not_valid": 0}),
        ('{"name": "Kim", "name": "Lee"}', {"value": 0, "not_json": 1, "not_valid": 0}),
        ("[" * 100_000, {"value": 0, "not_json": 1, "not_valid": 0}),
        ("9" * 5000, {"value": 0, "not_json": 1, "not_valid": 0}),
        ("", {"value": 0, "not_json": 1, "not_valid": 0}),
    ],
)
def test_a_response_is_valid_or_counted_by_its_fault(response: str, expected: dict[str, Any]) -> None:
    assert validate(response) == expected


def test_a_code_fence_is_accepted_only_if_allowed() -> None:
    fenced = '```json\n{"name": "Kim"}\n```'
    assert validate(fenced)["not_json"] == 1
    assert validate(fenced, allow_code_fence=True)["value"] == 1
    assert parse_json("```\n1\n```", allow_code_fence=True) == 1


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"$ref": "http://127.0.0.1:9/schema.json"}, "refers to 'http://127.0.0.1:9/schema.json'"),
        ({"properties": {"a": {"$ref": "file:///etc/passwd"}}}, "refers to 'file:///etc/passwd'"),
        ({"$schema": "http://127.0.0.1:9/draft"}, "not valid"),
        ({"$ref": "#/$defs/absent"}, "not valid"),
        ({"type": "strin"}, "not valid"),
        ({"pattern": "(?=a)"}, "not valid"),
        ({"enum": ["a" * 70_000]}, "the limit is 65,536"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused_in_the_config(schema: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(reason)):
        JsonSchema(json_schema=schema)


def test_patterns_in_a_schema_take_linear_time() -> None:
    begin = time.process_time()
    schema = {"patternProperties": {"^(a+)+$": {}}, "additionalProperties": False, "pattern": "^(a+)+$"}
    check, text = compile_schema(schema), "a" * 50_000 + "!"
    assert not check.is_valid({text: 1}) and not check.is_valid(text)
    assert time.process_time() - begin < 2


def test_a_deeply_nested_schema_is_refused_or_compiled_without_a_crash() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(5000):
        schema = {"not": schema}
    with pytest.raises(ValueError, match="nested too deeply"):
        compile_schema(schema)


def test_a_schema_of_the_row_is_checked_before_anything_is_generated() -> None:
    metric = JsonSchemaMetric(JsonSchema(schema_field="schema"))
    assert metric.check_row(make_row(fields={"schema": PERSON})) is None
    assert metric.check_row(make_row(fields={"schema": '{"type": "integer"}'})) is None
    assert "'schema' is missing" in str(metric.check_row(make_row()))
    assert "not valid" in str(metric.check_row(make_row(fields={"schema": {"type": 1}})))
    assert metric.score([make_row("1", fields={"schema": {"type": "integer"}})]).value == 1


def test_one_source_of_the_pattern_and_of_the_schema_is_required() -> None:
    with pytest.raises(ValidationError, match="either pattern or pattern_field"):
        RegularExpression()
    with pytest.raises(ValidationError, match="either json_schema or schema_field"):
        JsonSchema(json_schema={}, schema_field="schema")
