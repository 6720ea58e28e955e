"""A schema of a user costs no more than its size times that of the value, however its parts refer to others.

Attacks: definitions that each apply the one before twice, by any keyword that applies others to the same
place; the same once per level of the value; parts without end.
"""

import time
from typing import Any

import pytest

from tests.security.regression import Regression
from trainers.configs.parsing.json_schema import compile_schema

# Those that multiply take years; the processor of a test may be slow, and collect garbage meanwhile.
MAX_SECONDS = 10.0
KEYWORDS = ("allOf", "anyOf", "oneOf")


def chain(link: Any, length: int = 60) -> dict[str, Any]:
    """Return a schema of definitions, each made by `link` from a reference to the one before."""
    parts: dict[str, Any] = {"d0": {"type": "integer"}}
    for number in range(1, length + 1):
        parts[f"d{number}"] = link({"$ref": f"#/$defs/d{number - 1}"})
    return {"$ref": f"#/$defs/d{length}", "$defs": parts}


def nested(value: Any, levels: int) -> Any:
    for _ in range(levels):
        value = {"a": [value, value]} if levels < 5 else {"a": value}
    return value


CHAINS = {
    **{keyword: chain(lambda one, keyword=keyword: {keyword: [one, one]}) for keyword in KEYWORDS},
    "if": chain(lambda one: {"if": one, "then": one}),
    "not": chain(lambda one: {"not": one, "allOf": [one]}),
    "a sibling": chain(lambda one: {**one, "allOf": [one]}),
    "dependentSchemas": chain(lambda one: {"dependentSchemas": {"a": one, "b": one}}),
    "itself": {"allOf": [{"$ref": "#"}]},
    "each other": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "an anchor": {"$defs": {"a": {"$anchor": "x", "anyOf": [{"$ref": "#x"}]}}, "$ref": "#x"},
    "a name with an escape": chain(lambda one: {"oneOf": [one, {"$ref": one["$ref"].replace("d", "%64")}]}),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_schema_that_multiplies_is_refused(name: str) -> None:
    started = time.process_time()
    with pytest.raises(ValueError, match=r"refer(s|) to (each other|itself)|applied together"):
        compile_schema(CHAINS[name])
    assert time.process_time() - started < MAX_SECONDS


TREES: dict[str, dict[str, Any]] = {
    "a property": {"properties": {"a": {"allOf": [{"$ref": "#"}, {"$ref": "#"}]}}},
    "a pattern": {"properties": {"a": {"$ref": "#"}}, "patternProperties": {"^a": {"$ref": "#"}}},
    "other properties": {"allOf": [{"additionalProperties": {"$ref": "#"}}] * 2},
    "alternatives": {"anyOf": [{"properties": {"a": {"$ref": "#"}, "b": {"const": n}}} for n in range(4)]},
    "two steps": {"properties": {"a": {"properties": {"a": {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}}}}},
}


@pytest.mark.parametrize("name", TREES)
def test_a_value_that_multiplies_with_its_depth_is_refused(name: str) -> None:
    check = compile_schema({**TREES[name], "not": {"const": 1}})
    started = time.process_time()
    deep = nested(1, 300)
    assert not check.is_valid(deep)
    assert "steps; the limit is" in str(check.explain(deep))
    assert time.process_time() - started < MAX_SECONDS
    assert check.is_valid(nested(2, 3)) and not check.is_valid(1)


def test_the_steps_for_a_value_are_counted_before_it_is_checked() -> None:
    check = compile_schema({**TREES["a property"], "not": {"const": 1}})
    assert "steps; the limit is" in str(check.explain(nested(1, 22)))


def test_the_analysis_of_a_large_schema_is_bounded() -> None:
    wide: dict[str, Any] = {
        "anyOf": [{"patternProperties": {f"p{n}": {}}, "properties": {f"a{n}": {}}} for n in range(900)]
    }
    long = chain(lambda one: {"allOf": [one]}, 800)
    for schema in (wide, long):
        started = time.process_time()
        with pytest.raises(ValueError, match=r"applied together|too deeply"):
            compile_schema(schema)
        assert time.process_time() - started < MAX_SECONDS


def test_ordinary_schemas_and_large_values_are_checked() -> None:
    tree = {"properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}, "value": {"type": "integer"}}}
    value: Any = {"value": 1}
    for _ in range(12):
        value = {"left": value, "right": value, "value": 1}
    assert compile_schema(tree).is_valid(value)
    union = {"items": {"oneOf": [{"properties": {"kind": {"const": n}, "n": {}}} for n in range(200)]}}
    check = compile_schema(union)
    assert check.is_valid([{"kind": 7}] * 1000) and not check.is_valid([{"kind": -1}])


REGRESSIONS = [
    Regression(
        "the applications of a schema are not bounded",
        "trainers.configs.parsing.json_schema:MAX_APPLICATIONS",
        10**15,
        "test_a_schema_that_multiplies_is_refused",
    ),
    Regression(
        "the steps for a value are not bounded",
        "trainers.configs.parsing.json_schema:MAX_STEPS",
        10**300,
        "test_the_steps_for_a_value_are_counted_before_it_is_checked",
    ),
]
