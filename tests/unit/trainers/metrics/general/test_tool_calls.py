"""Tool calls are equal by name and by arguments as JSON, in any order unless it is strict."""

import json
from typing import Any

import pytest

from tests.unit.trainers.metrics.general.conftest import make_row
from trainers.configs.metrics.general import ToolCalls
from trainers.metrics.general.tool_calls import ToolCallsMetric
from trainers.metrics.metric import MetricValues


def call(name: str, arguments: Any) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}


WEATHER = call("weather", {"city": "서울", "days": 2, "metric": True})
TIME = call("time", {})


def compare(found: list[dict[str, Any]], expected: list[dict[str, Any]], **config: Any) -> MetricValues:
    row = make_row("", "", tool_calls=found, reference_tool_calls=expected)
    return ToolCallsMetric(ToolCalls(**config)).score([row])


@pytest.mark.parametrize(
    "arguments",
    [
        '{"days": 2, "city": "\\uc11c\\uc6b8", "metric": true}',
        json.dumps({"city": "서울", "days": 2.0, "metric": True}),
        {"metric": True, "days": 2, "city": "서울"},
    ],
)
def test_arguments_are_compared_as_json_whatever_their_form(arguments: Any) -> None:
    assert compare([call("weather", arguments)], [WEATHER]).value == 1


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"city": "서울", "days": 2, "metric": 1}, "wrong_arguments"),
        ({"city": "서울", "days": "2", "metric": True}, "wrong_arguments"),
        ({"city": "서울"}, "wrong_arguments"),
        ('{"city": ', "invalid_arguments"),
    ],
)
def test_other_arguments_are_wrong_and_counted(arguments: Any, fault: str) -> None:
    values = compare([call("weather", arguments)], [WEATHER])
    assert values.value == 0 and values.details[fault] == 1
    assert compare([call("weather", arguments)], [WEATHER], arguments="ignored").value == 1


def test_parallel_calls_agree_in_any_order_unless_it_is_strict() -> None:
    assert compare([TIME, WEATHER], [WEATHER, TIME]).value == 1
    assert compare([TIME, WEATHER], [WEATHER, TIME], order="strict").value == 0
    assert compare([WEATHER, TIME], [WEATHER, TIME], order="strict").value == 1


def test_the_number_of_equal_calls_matters() -> None:
    values = compare([TIME, TIME], [TIME])
    assert values.value == 0 and values.details["additional_calls"] == 1
    assert compare([], [TIME, WEATHER]).details["missing_calls"] == 2


def test_no_call_is_right_where_the_reference_has_none() -> None:
    assert compare([], []).value == 1
    assert compare([TIME], []).value == 0


def test_a_malformed_call_of_a_model_is_wrong_and_not_an_error() -> None:
    for bad in ({}, {"function": None}, {"function": {"name": 3, "arguments": 4}}):
        assert compare([bad], [TIME]).value == 0


def test_a_row_without_tools_cannot_be_scored() -> None:
    metric = ToolCallsMetric(ToolCalls())
    assert "neither `tools` nor a tool call" in str(metric.check_row(make_row()))
    assert metric.check_row(make_row(fields={"tools": [{"type": "function"}]})) is None
    assert metric.check_row(make_row(reference_tool_calls=[TIME])) is None
