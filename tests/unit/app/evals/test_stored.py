"""The filters by which stored responses become the items of a run."""

from typing import Any

from app.evals.data_source import StoredResponsesSource
from app.evals.stored import as_messages, matches


def test_a_filter_of_responses_finds_what_their_request_had() -> None:
    response = {
        "temperature": 0.5,
        "top_p": 0.9,
        "reasoning": {"effort": "low"},
        "instructions": "Be brief.",
        "tools": [{"type": "function", "name": "look_up"}, {"type": "function", "name": "add"}],
        "user": "u1",
        "metadata": {"a": "b"},
    }
    filters: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"temperature": 0.5}, {"temperature": 0.4}),
        ({"top_p": 0.9}, {"top_p": 1}),
        ({"reasoning_effort": "low"}, {"reasoning_effort": "high"}),
        ({"instructions_search": "brief"}, {"instructions_search": "long"}),
        ({"tools": ["look_up"]}, {"tools": ["look_up", "other"]}),
        ({"users": ["u0", "u1"]}, {"users": ["u0"]}),
    ]
    for found, missed in filters:
        for given, expected in ((found, True), (missed, False)):
            source = StoredResponsesSource(type="responses", **given)
            assert matches(source, {"a": "b"}, response) is expected, given
            assert not matches(source, {"a": "c"}, response)


def test_the_items_of_a_response_are_messages_of_a_chat() -> None:
    call = {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c", "output": "3"}
    text = {
        "role": "user",
        "content": [{"type": "input_text", "text": "1 "}, {"type": "input_text", "text": "2"}],
    }
    function = {"name": "add", "arguments": "{}"}
    assert as_messages([text, {"type": "reasoning"}, call, output]) == [
        {"role": "user", "content": "1 2"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "3"},
    ]
