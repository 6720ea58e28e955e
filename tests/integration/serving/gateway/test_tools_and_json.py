"""Tools and JSON through the gateway on our own engines, with the official SDK: its types are the oracle."""

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import jsonschema
import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel, Field

from tests.integration.serving.conftest import BASE_SAYS, Server, sdk_of
from tests.integration.serving.random_schemas import random_schema

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
PAINT: list[Any] = [{"role": "user", "content": "paint it red"}]


class Color(BaseModel):
    """A color with a share, in a list: nested, with an enum and bounds."""

    name: Literal["red", "green"]
    shares: list[Literal[1, 2]] = Field(max_length=3)


@pytest.fixture(scope="module")
def client(each_gateway: Server) -> Iterator[OpenAI]:
    """Yield the official SDK in front of each engine in turn."""
    with sdk_of(each_gateway) as sdk:
        yield sdk


def paint(*colors: str) -> Any:
    parameters: dict[str, Any] = {"type": "object", "required": ["color"], "additionalProperties": False}
    parameters |= {"properties": {"color": {"type": "string", "enum": list(colors)}}}
    return {"type": "function", "function": {"name": "paint", "strict": True, "parameters": parameters}}


def flat(tool: Any) -> Any:
    """Return a tool in the form of the Responses API."""
    return {"type": "function", **tool["function"]}


def schema_format(schema: dict[str, Any]) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def test_a_parsed_chat_is_an_object_of_the_requested_class(client: OpenAI) -> None:
    completion = client.chat.completions.parse(
        model="base", messages=HELLO, response_format=Color, seed=1, max_tokens=200
    )
    color = completion.choices[0].message.parsed
    assert isinstance(color, Color)
    assert color.name in ("red", "green")


def test_a_parsed_response_is_an_object_of_the_requested_class(client: OpenAI) -> None:
    response = client.responses.parse(
        model="base", input="hello", text_format=Color, temperature=0, max_output_tokens=200
    )
    assert isinstance(response.output_parsed, Color)


def test_a_json_object_is_one_and_a_stream_has_the_same_text(client: OpenAI) -> None:
    request: dict[str, Any] = {"model": "base", "messages": HELLO, "temperature": 0, "max_tokens": 300}
    request["response_format"] = {"type": "json_object"}
    whole = client.chat.completions.create(**request).choices[0]
    chunks = list(client.chat.completions.create(**request, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.message.content
    if whole.finish_reason == "stop":
        assert isinstance(json.loads(text), dict)
    assert text.startswith("{")


def test_random_schemas_are_followed(client: OpenAI) -> None:
    # Eight of the 200 that the slow test of this file checks.
    check_random_schemas(client, range(8))


@pytest.mark.slow
def test_two_hundred_random_schemas_are_followed(client: OpenAI) -> None:
    check_random_schemas(client, range(200))


def check_random_schemas(client: OpenAI, seeds: range) -> None:
    for seed in seeds:
        schema = random_schema(random.Random(seed))
        choice = client.chat.completions.create(
            model="base",
            messages=HELLO,
            response_format=schema_format(schema),
            seed=seed,
            max_tokens=1500,
            # The end of a string is more likely than any other character, so that texts are short.
            extra_body={"logit_bias": QUOTES},
        ).choices[0]
        assert choice.finish_reason == "stop", (seed, choice.message.content)
        jsonschema.Draft202012Validator(schema).validate(json.loads(choice.message.content or ""))


# The token of a quotation mark in the tiny models' byte alphabet.
QUOTES = {"5": 6}


def test_a_required_tool_is_called_with_valid_arguments(client: OpenAI) -> None:
    # By itself, the model would count, and it knows red only.
    for choice in ("required", {"type": "function", "function": {"name": "paint"}}):
        request: dict[str, Any] = {"tools": [paint("green")], "tool_choice": choice}
        completion = client.chat.completions.create(
            model="base", messages=HELLO, temperature=0, parallel_tool_calls=False, **request
        ).choices[0]
        (call,) = completion.message.tool_calls or []
        assert call.type == "function"
        assert (call.function.name, json.loads(call.function.arguments)) == ("paint", {"color": "green"})
        assert call.id.startswith("call_")
        assert completion.message.content is None
        # As OpenAI's API, which reports the choice of the model only.
        assert completion.finish_reason == ("tool_calls" if choice == "required" else "stop")


def test_an_optional_tool_is_called_when_the_model_calls_it(client: OpenAI) -> None:
    request: dict[str, Any] = {"model": "base", "temperature": 0, "tools": [paint("red", "green")]}
    choice = client.chat.completions.create(**request, messages=PAINT).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert [call.function.arguments for call in choice.message.tool_calls or []] == ['{"color": "red"}']
    assert client.chat.completions.create(**request, messages=HELLO).choices[0].message.content == BASE_SAYS


def test_a_call_that_the_model_begins_follows_the_schema(client: OpenAI) -> None:
    # The model has learned to call it with red only.
    completion = client.chat.completions.create(
        model="base", temperature=0, messages=PAINT, tools=[paint("green")]
    )
    (call,) = completion.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert json.loads(call.function.arguments) == {"color": "green"}


def test_arguments_are_streamed_in_pieces(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model="base", temperature=0, messages=PAINT, tools=[paint("red", "green")], stream=True
    )
    chunks = [chunk.choices[0] for chunk in stream]
    pieces = [call for choice in chunks for call in choice.delta.tool_calls or []]
    assert pieces[0].function is not None and pieces[0].function.name == "paint"
    assert pieces[0].id is not None and all(piece.id is None for piece in pieces[1:])
    arguments = [piece.function.arguments or "" for piece in pieces if piece.function]
    assert "".join(arguments) == '{"color": "red"}'
    assert len(arguments) > 3
    assert not any(choice.delta.content for choice in chunks[1:])
    assert [choice.finish_reason for choice in chunks if choice.finish_reason] == ["tool_calls"]
    assert chunks[-1].delta.tool_calls is None


def test_the_sdk_s_stream_helper_assembles_calls(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model="base", temperature=0, messages=PAINT, tools=[paint("red")]
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion().choices[0]
    assert "tool_calls.function.arguments.delta" in kinds
    assert final.message.tool_calls is not None
    assert final.message.tool_calls[0].function.parsed_arguments == {"color": "red"}


def test_several_tools_are_called_in_parallel_and_with_n(client: OpenAI) -> None:
    # At this temperature, tokens are drawn evenly among those that the grammar allows.
    completion = client.chat.completions.create(
        model="base",
        messages=HELLO,
        tools=[paint("red", "green")],
        tool_choice="required",
        n=8,
        seed=3,
        temperature=100,
        max_tokens=600,
    )
    calls = [choice.message.tool_calls or [] for choice in completion.choices]
    assert max(len(found) for found in calls) > 1
    assert len({call.id for found in calls for call in found}) == sum(map(len, calls))
    for choice in completion.choices:
        if choice.finish_reason == "tool_calls":
            for call in choice.message.tool_calls or []:
                assert call.type == "function"
                assert json.loads(call.function.arguments)["color"] in ("red", "green")


def test_without_parallel_calls_there_is_one(client: OpenAI) -> None:
    completion = client.chat.completions.create(
        model="base",
        messages=HELLO,
        tools=[paint("red")],
        tool_choice="required",
        parallel_tool_calls=False,
        n=4,
        seed=3,
        temperature=100,
    )
    assert [len(choice.message.tool_calls or []) for choice in completion.choices] == [1, 1, 1, 1]


def test_a_call_that_is_cut_off_has_the_finish_reason_length(client: OpenAI) -> None:
    request: dict[str, Any] = {"model": "base", "messages": PAINT, "temperature": 0, "tools": [paint("red")]}
    whole = client.chat.completions.create(**request).usage
    assert whole is not None
    choice = client.chat.completions.create(
        **request, max_tokens=whole.completion_tokens - len('red"}}\n</tool_call>')
    ).choices[0]
    assert choice.finish_reason == "length"
    (call,) = choice.message.tool_calls or []
    assert call.type == "function"
    assert '{"color": "red"}'.startswith(call.function.arguments)
    assert call.function.arguments != '{"color": "red"}'


def test_no_tool_is_offered_with_the_choice_none(client: OpenAI) -> None:
    request: dict[str, Any] = {"model": "base", "messages": HELLO, "temperature": 0}
    plain = client.chat.completions.create(**request).usage
    with_tools = client.chat.completions.create(**request, tools=[paint("red")], tool_choice="none").usage
    assert plain is not None and with_tools is not None
    assert plain.prompt_tokens == with_tools.prompt_tokens


def test_the_results_of_calls_are_rendered(client: OpenAI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "paint", "arguments": '{"color":"red"}'}}
    messages: list[Any] = [
        *PAINT,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "painted"},
    ]
    usage = [
        client.chat.completions.create(
            model="base", messages=messages[:n], tools=[paint("red")], max_tokens=1
        ).usage
        for n in (1, 3)
    ]
    assert usage[0] is not None and usage[1] is not None
    assert usage[1].prompt_tokens - usage[0].prompt_tokens > len('<tool_call>paint{"color": "red"}painted')


def test_a_schema_that_the_free_completion_follows_changes_nothing(client: OpenAI) -> None:
    request: dict[str, Any] = {"model": "base", "messages": HELLO, "temperature": 0}
    pattern = {"type": "string", "pattern": "^.{0,200}$"}
    # A grammar of JSON cannot accept the text itself, but the text of a call is one that it accepts.
    free = client.chat.completions.create(**request | {"messages": PAINT}, logprobs=True)
    tools = client.chat.completions.create(**request | {"messages": PAINT}, tools=[paint("red")])
    assert free.choices[0].message.content == (
        '<tool_call>\n{"name": "paint", "arguments": {"color": "red"}}\n</tool_call>'
    )
    assert tools.usage is not None and free.usage is not None
    assert tools.usage.completion_tokens == free.usage.completion_tokens
    assert json.loads(
        client.chat.completions.create(**request, response_format=schema_format(pattern))
        .choices[0]
        .message.content
        or ""
    )


def test_a_response_calls_tools_and_streams_their_arguments(client: OpenAI) -> None:
    tool = flat(paint("red", "green"))
    request: dict[str, Any] = {"model": "base", "input": "paint it red", "tools": [tool], "temperature": 0}
    response = client.responses.create(**request)
    (item,) = response.output
    assert item.type == "function_call"
    assert (item.name, item.arguments, item.status) == ("paint", '{"color": "red"}', "completed")
    events = list(client.responses.create(**request, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = list(dict.fromkeys(event.type for event in events))
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == item.arguments and len(deltas) > 3


def test_a_response_continues_after_the_result_of_a_call(client: OpenAI) -> None:
    tool = flat(paint("red"))
    first = client.responses.create(model="base", input="paint it red", tools=[tool], temperature=0)
    (call,) = first.output
    assert call.type == "function_call"
    conversation: list[Any] = [
        {"role": "user", "content": "paint it red"},
        call.model_dump(exclude_none=True),
        {"type": "function_call_output", "call_id": call.call_id, "output": "painted"},
    ]
    second = client.responses.create(
        model="base", input=conversation, tools=[tool], tool_choice={"type": "function", "name": "paint"}
    )
    assert second.output[0].type == "function_call"
    assert second.usage is not None and first.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens
    assert second.tool_choice.name == "paint"  # type: ignore[union-attr]


def test_text_follows_a_schema_or_calls_a_tool(client: OpenAI) -> None:
    request: dict[str, Any] = {"model": "base", "temperature": 0, "tools": [paint("red")], "max_tokens": 100}
    request["response_format"] = schema_format(
        {
            "type": "object",
            "properties": {"n": {"enum": [1, 2]}},
            "required": ["n"],
            "additionalProperties": False,
        }
    )
    called = client.chat.completions.create(**request, messages=PAINT).choices[0]
    text = client.chat.completions.create(**request, messages=HELLO).choices[0]
    assert called.finish_reason == "tool_calls" or json.loads(called.message.content or "")["n"] in (1, 2)
    assert text.message.tool_calls or json.loads(text.message.content or "")["n"] in (1, 2)


def test_constrained_and_free_completions_share_a_batch(client: OpenAI) -> None:
    def ask(number: int) -> str:
        form: Any = schema_format({"type": "array", "items": {"const": number}, "minItems": 9, "maxItems": 9})
        extra: dict[str, Any] = {"response_format": form} if number % 2 else {}
        model = ("base", "alpha")[number % 4 // 2]
        completion = client.chat.completions.create(model=model, messages=HELLO, temperature=0, **extra)
        return str(completion.choices[0].message.content)

    alone = [ask(number) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, range(8)))
    assert together == alone
    assert [json.loads(alone[number]) for number in (1, 3)] == [[1] * 9, [3] * 9]
    assert alone[0] == BASE_SAYS


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        (
            {"response_format": schema_format({"type": "array", "uniqueItems": True})},
            "response_format",
            "'uniqueItems' cannot be enforced",
        ),
        ({"response_format": schema_format({"$ref": "#/$defs/x"})}, "response_format", "does not exist"),
        ({"response_format": schema_format({"enum": []})}, "response_format", "nsatisfiable"),
        ({"response_format": {"type": "xml"}}, "response_format", "'json_object'"),
        ({"tools": [paint("red"), paint("red")]}, "tools", "twice"),
        ({"tools": [{"type": "web_search"}]}, "tools", "'function'"),
        ({"tools": [paint("red")], "tool_choice": "sometimes"}, "tool_choice", "'required'"),
        (
            {"tools": [paint("red")], "tool_choice": {"type": "function", "function": {"name": "draw"}}},
            "tool_choice",
            "'draw'",
        ),
        ({"tool_choice": "required"}, "tool_choice", "needs 'tools'"),
        ({"functions": [{"name": "f"}]}, "functions", "use 'tools'"),
        ({"function_call": {"name": "f"}}, "function_call", "use 'tool_choice'"),
        ({"model": "beta", "tools": [paint("red")]}, "tools", "'beta'"),
        ({"messages": [{"role": "bananas", "content": "x"}]}, "messages", "'assistant' or 'tool'"),
        ({"messages": [{"role": "user", "content": None}]}, "messages", "no 'content'"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    client: OpenAI, fields: dict[str, Any], param: str, message: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as error:
        client.chat.completions.create(**{"model": "base", "messages": HELLO, **fields})
    assert (error.value.param, error.value.code) == (param, "invalid_request")


def test_the_schema_of_a_strict_tool_is_refused_by_name_and_that_of_others_is_enforced_as_far_as_possible(
    client: OpenAI,
) -> None:
    tool = paint("red")
    tool["function"]["parameters"]["minProperties"] = 1
    tool["function"]["parameters"]["properties"]["color"]["format"] = "unheard-of"
    request: dict[str, Any] = {"model": "base", "messages": PAINT, "temperature": 0, "tools": [tool]}
    with pytest.raises(openai.BadRequestError, match="'paint' cannot be enforced") as error:
        client.chat.completions.create(**request)
    assert error.value.param == "tools[0].function.parameters"
    del tool["function"]["strict"]
    (call,) = client.chat.completions.create(**request).choices[0].message.tool_calls or []
    assert call.type == "function"
    assert json.loads(call.function.arguments) == {"color": "red"}
