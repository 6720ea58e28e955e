"""Chat completions that are put together from the chunks of a stream."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.completions.chat_stream import assemble_completion
from app.completions.input_items import normalize_input


def lines_of(*chunks: Any) -> bytes:
    events = [f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n" for chunk in chunks]
    return "".join([*events, "data: [DONE]\n\n"]).encode()


def chunk(index: int, delta: Any, **fields: Any) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "choices": [{"index": index, "delta": delta, **fields}]}


@given(st.lists(st.tuples(st.integers(0, 2), st.text(st.characters(codec="utf-8"), max_size=5))))
def test_each_choice_has_the_text_of_its_deltas(deltas: list[tuple[int, str]]) -> None:
    chunks = [chunk(index, {"role": "assistant"}) for index in range(3)]
    chunks += [chunk(index, {"content": text}) for index, text in deltas]
    completion = assemble_completion(lines_of(*chunks))
    texts = ["".join(text for place, text in deltas if place == index) for index in range(3)]
    assert [choice["message"]["content"] or "" for choice in completion["choices"]] == texts
    assert [choice["index"] for choice in completion["choices"]] == [0, 1, 2]


def test_parallel_calls_of_tools_are_kept_apart() -> None:
    def call(index: int, **fields: Any) -> dict[str, Any]:
        return chunk(0, {"tool_calls": [{"index": index, **fields}]})

    completion = assemble_completion(
        lines_of(
            call(0, id="a", type="function", function={"name": "add", "arguments": ""}),
            call(1, id="b", type="function", function={"name": "sub", "arguments": '{"x"'}),
            call(0, function={"arguments": "{}"}),
            call(1, id="b", function={"name": "sub", "arguments": ":1}"}),
            chunk(0, {}, finish_reason="tool_calls"),
        )
    )
    (choice,) = completion["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"] == [
        {"id": "a", "type": "function", "function": {"name": "add", "arguments": "{}"}},
        {"id": "b", "type": "function", "function": {"name": "sub", "arguments": '{"x":1}'}},
    ]


def test_log_probabilities_reasoning_and_usage_are_kept() -> None:
    one, two = ({"content": [{"token": token, "logprob": -1.0}], "refusal": None} for token in "ab")
    completion = assemble_completion(
        lines_of(
            chunk(0, {"content": "a", "reasoning_content": "be"}, logprobs=one),
            chunk(0, {"content": "b", "reasoning_content": "cause"}, logprobs=two) | {"usage": None},
            {"id": "chatcmpl-1", "choices": [], "usage": {"total_tokens": 2}},
        )
    )
    (choice,) = completion["choices"]
    assert [entry["token"] for entry in choice["logprobs"]["content"]] == ["a", "b"]
    assert (choice["message"]["reasoning_content"], completion["usage"]) == ("because", {"total_tokens": 2})
    assert completion["object"] == "chat.completion"


@pytest.mark.parametrize("event", [b"data: [1]\n\n", b"data: {\n\n", b"data: {}\n\n", b""])
def test_a_stream_without_chunks_is_malformed(event: bytes) -> None:
    with pytest.raises(ValueError):
        assemble_completion(event + b"data: [DONE]\n\n")


def test_input_items_get_ids_and_parts() -> None:
    (item,) = normalize_input("one")
    assert (item["id"][:4], item["content"]) == ("msg_", [{"type": "input_text", "text": "one"}])
    messages = [{"role": "assistant", "content": "two"}, {"type": "function_call", "name": "f", "id": "fc_1"}]
    answer, call = normalize_input(messages)
    assert answer["content"] == [{"type": "output_text", "text": "two", "annotations": []}]
    assert call == {"id": "fc_1", "type": "function_call", "name": "f"}
    for wrong in (3, ["one"], None):
        with pytest.raises(ValueError, match="neither"):
            normalize_input(wrong)
