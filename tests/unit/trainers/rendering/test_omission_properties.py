"""Goal: nothing is reported of rows that a template renders whole, however short their texts are."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.properties import QUICK, THOROUGH
from tests.unit.trainers.rendering.test_omissions import (
    ARGUMENTS_ALONE,
    CALLS,
    CONCATENATES,
    PRINTS,
    omissions,
)

BY_DESIGN = {"white_space", "json_form", "earlier_reasoning"}
EACH_ALONE = ARGUMENTS_ALONE.replace("{{ v }}", "{{ v if v is string else v | tojson }}")
# Few characters, so that texts often contain each other.
texts = st.text(alphabet='ab \n한é"', min_size=1, max_size=4).filter(lambda text: text.strip() != "")
arguments = st.dictionaries(
    texts, texts | st.integers(0, 3) | st.booleans() | st.none() | st.lists(texts, max_size=2), max_size=2
)


def write_call(values: dict[str, Any]) -> dict[str, Any]:
    return {"function": {"name": "f", "arguments": json.dumps(values, ensure_ascii=False)}}


answers = st.fixed_dictionaries(
    {"content": texts},
    optional={
        "tool_calls": st.lists(arguments.map(write_call), min_size=1, max_size=2),
        "reasoning_content": texts,
    },
)
conversations = st.lists(st.tuples(texts, answers), min_size=1, max_size=3)
templates = st.sampled_from([CALLS, PRINTS, CONCATENATES, EACH_ALONE])


def check_nothing_is_reported(turns: list[tuple[str, dict[str, Any]]], template: str) -> None:
    messages = [
        message
        for question, answer in turns
        for message in ({"role": "user", "content": question}, {"role": "assistant"} | answer)
    ]
    assert {kind for kind, _ in omissions({"messages": messages}, template)} <= BY_DESIGN


@QUICK
@given(conversations, templates)
def test_nothing_is_reported_of_rows_that_are_rendered_whole(
    turns: list[tuple[str, dict[str, Any]]], template: str
) -> None:
    check_nothing_is_reported(turns, template)


@pytest.mark.slow
@THOROUGH
@given(conversations, templates)
def test_nothing_is_reported_of_many_rows_that_are_rendered_whole(
    turns: list[tuple[str, dict[str, Any]]], template: str
) -> None:
    check_nothing_is_reported(turns, template)
