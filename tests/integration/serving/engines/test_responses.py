"""The official SDK's Responses API against our own engine."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tests.integration.serving.conftest import BASE_SAYS, WAIT_SECONDS, Server, wait_for

HELLO: dict[str, Any] = {"model": "base", "input": "hello", "temperature": 0}
USER: Any = {"role": "user", "content": "hello"}
IMAGE = {"type": "input_image", "image_url": "data:,", "detail": "auto"}
SCHEMA = {"format": {"type": "json_schema", "name": "s", "schema": {"uniqueItems": True}}}
KINDS = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
]


@pytest.fixture(scope="module")
def sdk(engine: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{engine.url}/v1", api_key="none", max_retries=0, timeout=WAIT_SECONDS) as client:
        yield client


def raw_events(engine: Server, **fields: Any) -> list[tuple[str, Any]]:
    """Return the name and data of each event in the bytes of a stream."""
    _, text = engine.post("/v1/responses", HELLO | {"stream": True} | fields)
    assert text.endswith("\n\n")
    lines = [event.split("\n") for event in text.removesuffix("\n\n").split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in lines]


def prompt_tokens(engine: Server, *messages: Any) -> Any:
    """Tokens of a chat of these messages."""
    return engine.post("/tokenize", {"model": "base", "messages": messages})[1]["count"]


def test_a_response_equals_a_chat_completion_in_text_and_usage(sdk: OpenAI) -> None:
    response = sdk.responses.create(**HELLO)
    chat = sdk.chat.completions.create(model="base", messages=[USER], temperature=0)
    assert response.output_text == chat.choices[0].message.content == BASE_SAYS
    assert (response.status, response.incomplete_details) == ("completed", None)
    assert response.usage and chat.usage
    usage = response.usage
    assert (usage.input_tokens, usage.output_tokens) == (
        chat.usage.prompt_tokens,
        chat.usage.completion_tokens,
    )
    assert usage.total_tokens == chat.usage.total_tokens


def test_a_response_is_whole_and_ends_with_its_usage(engine: Server) -> None:
    request = {
        "instructions": "count",
        "metadata": {"for": "someone"},
        "user": "me",
        "top_p": 0.5,
        "store": True,
    }
    status, body = engine.post("/v1/responses", HELLO | request)
    assert status == 200
    whole = Response.model_validate(body)
    assert whole.id.startswith("resp_")
    assert whole.output[0].id and whole.output[0].id.startswith("msg_")
    assert (whole.instructions, whole.metadata, whole.user) == ("count", {"for": "someone"}, "me")
    assert (whole.temperature, whole.top_p, whole.truncation) == (0, 0.5, "disabled")
    assert list(body)[-1] == "usage"
    assert body["store"] is False


def test_a_stream_has_each_kind_of_event_in_order(engine: Server) -> None:
    events = raw_events(engine)
    names = [name for name, _ in events]
    assert list(dict.fromkeys(names)) == KINDS
    assert names.count("response.output_text.delta") == len(names) - len(KINDS) + 1 > 10
    assert [data["type"] for _, data in events] == names
    assert [data["sequence_number"] for _, data in events] == list(range(len(events)))
    assert list(events[-1][1]["response"])[-1] == "usage"
    for _, data in events:
        TypeAdapter[Any](ResponseStreamEvent).validate_python(data)


def test_a_streamed_response_equals_the_plain_one_in_whole_characters(sdk: OpenAI) -> None:
    events = list(sdk.responses.create(**HELLO, stream=True))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == BASE_SAYS
    assert "�" not in "".join(deltas)
    done = events[-1]
    assert done.type == "response.completed"
    assert done.response.output_text == BASE_SAYS
    assert done.response.usage == sdk.responses.create(**HELLO).usage


def test_the_sdk_s_helper_collects_a_stream(sdk: OpenAI) -> None:
    with sdk.responses.stream(**HELLO) as stream:
        (text,) = [event.text for event in stream if event.type == "response.output_text.done"]
        assert text == stream.get_final_response().output_text == BASE_SAYS


@pytest.mark.parametrize("streamed", [False, True])
def test_a_truncated_response_is_incomplete(sdk: OpenAI, streamed: bool) -> None:
    request = HELLO | {"max_output_tokens": 8}
    if streamed:
        last = list(sdk.responses.create(**request, stream=True))[-1]
        assert last.type == "response.incomplete"
        response = last.response
    else:
        response = sdk.responses.create(**request)
    message: Any = response.output[0]
    assert (response.status, message.status) == ("incomplete", "incomplete")
    assert response.incomplete_details and response.incomplete_details.reason == "max_output_tokens"
    assert response.usage and response.usage.output_tokens == 8
    assert response.output_text and BASE_SAYS.startswith(response.output_text.rstrip("�"))


def test_a_client_sends_the_whole_conversation(sdk: OpenAI, engine: Server) -> None:
    conversation: list[Any] = [{"role": "user", "content": [{"type": "input_text", "text": "hello"}]}]
    first = sdk.responses.create(model="base", input=conversation, temperature=0)
    conversation += [*first.output, {"type": "message", "role": "user", "content": "count"}]
    second = sdk.responses.create(
        model="base", input=conversation, instructions="say alpha", temperature=0, max_output_tokens=4
    )
    completion = {"role": "assistant", "content": BASE_SAYS}
    chat: list[Any] = [
        {"role": "system", "content": "say alpha"},
        USER,
        completion,
        USER | {"content": "count"},
    ]
    same = sdk.chat.completions.create(model="base", messages=chat, temperature=0, max_tokens=4)
    assert second.output_text == same.choices[0].message.content
    assert second.usage and second.usage.input_tokens == prompt_tokens(engine, *chat)


def test_sampling_parameters_have_the_same_effect_as_in_a_chat(sdk: OpenAI) -> None:
    assert sdk.responses.create(**HELLO, extra_body={"stop": "넷 다"}).output_text == "하나 둘 셋 "
    random = HELLO | {"temperature": 3, "max_output_tokens": 30}
    texts = [sdk.responses.create(**random, extra_body={"seed": seed}).output_text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_logprobs_are_returned_on_request(sdk: OpenAI) -> None:
    request: dict[str, Any] = HELLO | {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    message: Any = sdk.responses.create(**request).output[0]
    part = message.content[0]
    assert bytes(byte for token in part.logprobs for byte in token.bytes).decode() == BASE_SAYS
    assert all(len(token.top_logprobs) == 2 for token in part.logprobs)
    deltas = [
        e for e in sdk.responses.create(**request, stream=True) if e.type == "response.output_text.delta"
    ]
    streamed = [entry.logprob for delta in deltas for entry in delta.logprobs]
    assert streamed == pytest.approx([entry.logprob for entry in part.logprobs], abs=1e-4)


def test_parameters_without_effect_are_accepted(sdk: OpenAI) -> None:
    response = sdk.responses.create(
        **HELLO,
        background=False,
        include=["reasoning.encrypted_content"],
        parallel_tool_calls=True,
        previous_response_id=None,
        store=False,
        text={"format": {"type": "text"}, "verbosity": "medium"},
        tool_choice="auto",
        tools=[],
        truncation="auto",
        reasoning={"effort": None},
    )
    assert response.output_text == BASE_SAYS


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        (
            {"previous_response_id": "resp_1"},
            "previous_response_id",
            "send the whole conversation in 'input'",
        ),
        ({"conversation": "conv_1"}, "conversation", "send the whole conversation in 'input'"),
        ({"background": True}, "background", "request a stream"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", "write the prompt in 'instructions' and 'input'"),
        ({"tools": [{"type": "web_search"}]}, "tools", "Input should be 'function'"),
        ({"tool_choice": "required"}, "tool_choice", "needs 'tools'"),
        ({"text": SCHEMA}, "text.format", "'uniqueItems' cannot be enforced"),
        ({"truncation": "middle"}, "truncation", "Input should be 'disabled'"),
        ({"reasoning": {"effort": "high"}}, "reasoning", "leave it out"),
        ({"include": ["file_search_call.results"]}, "include", "message.output_text.logprobs"),
        ({"top_logprobs": 2}, "top_logprobs", "'include'"),
        ({"input": [{"role": "user", "content": [IMAGE]}]}, "input", "Input should be 'input_text'"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input", "Input should be 'message'"),
        ({"input": []}, "input", "at least 1 item"),
        ({"max_output_tokens": 0}, "max_output_tokens", "greater than or equal to 1"),
        ({"max_output_tokens": 9000}, "max_output_tokens", "Ask for fewer tokens"),
        ({"input": "하나 " * 3000}, "input", "Shorten the prompt"),
        ({"extra_body": {"max_tokens": 5}}, "max_tokens", "'max_output_tokens'"),
        ({"extra_body": {"n": 2}}, "n", "one output"),
        ({"extra_body": {"min_tokens": 9}, "max_output_tokens": 8}, "min_tokens", "'max_output_tokens'"),
    ],
)
def test_an_unsupported_parameter_is_rejected_with_a_hint(
    sdk: OpenAI, fields: dict[str, Any], param: str, message: str
) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        sdk.responses.create(**(HELLO | fields))
    assert error.value.param == param
    assert message in error.value.message


def test_a_response_is_not_stored(sdk: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        sdk.responses.retrieve(sdk.responses.create(**HELLO, max_output_tokens=1).id)


def test_an_unknown_model_is_rejected_before_a_stream_begins(sdk: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="alpha"):
        sdk.responses.create(model="nobody", input="hello", stream=True)


def test_a_disconnected_client_stops_the_generation_of_its_response(engine: Server) -> None:
    host, port = engine.url.removeprefix("http://").split(":")
    body = json.dumps(HELLO | {"stream": True, "ignore_eos": True, "max_output_tokens": 8000}).encode()
    head = f"POST /v1/responses HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + body)
        assert connection.recv(1000)
        wait_for(lambda: engine.get("/health")[1]["running"] == 1)
    wait_for(lambda: engine.get("/health")[1]["running"] == 0, 8)


def test_another_engine_s_reasoning_is_not_part_of_the_conversation(sdk: OpenAI) -> None:
    reasoning: Any = {"type": "reasoning", "id": "rs_1", "summary": []}
    with_it = sdk.responses.create(**HELLO | {"input": [USER, reasoning]})
    assert with_it.usage and with_it.usage.input_tokens == sdk.responses.create(**HELLO).usage.input_tokens
