"""Request bodies: the model name, allowed fields and limits; and the model name in responses."""

import json
from typing import Any

import pytest

from serving.gateway.request_body import (
    ALLOWED_FIELDS,
    RequestLimits,
    model_name_replacements,
    parse_request_body,
    replace_model_name,
)
from serving.http.errors import InvalidRequest

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("body", "model", "sent"),
    [
        (b' { "stop" : [1,  2.50], "model" : "x" } ', "x", b'{"stop":[1,  2.50],"model":"up"}'),
        (b'{"model":"x","model":"y"}', "y", b'{"model":"up"}'),
        (b'{"mod\\u0065l":"y","metadata":{"model":"z"}}', "y", b'{"model":"up","metadata":{"model":"z"}}'),
        (
            '{"model":"한","user":"\\ud55c\\"model\\":"}'.encode(),
            "한",
            b'{"model":"up","user":"\\ud55c\\"model\\":"}',
        ),
        (b'{"seed":123456789012345678901234567890,"model":"x"}', "x", None),
    ],
)
def test_only_the_model_name_of_a_body_changes(body: bytes, model: str, sent: bytes | None) -> None:
    parsed = parse_request_body(CHAT, body, RequestLimits())
    assert parsed.model == model
    assert parsed.encode("up") == sent or sent is None
    assert json.loads(parsed.encode("up")) == json.loads(body) | {"model": "up"}


def test_generated_text_is_not_mistaken_for_the_model_name() -> None:
    response = json.dumps({"text": '"model":"up", "model": "up"', "model": "up"}, indent=None)
    for text in (response, response.replace(": ", ":")):
        replaced = replace_model_name(text.encode(), model_name_replacements("up", 'a "b"'))
        assert json.loads(replaced) == json.loads(text) | {"model": 'a "b"'}
    assert model_name_replacements("same", "same") == ()


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"x","user":"\xff"}',
        b'{"model":"x","user":NaN}',
        b'{"model":"x"}{}',
        b'{"model":"x",}',
        b'{"model":null}',
        b'{"model":"x","user":' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
)
def test_json_that_engines_might_parse_differently_is_rejected(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse_request_body(CHAT, body, RequestLimits())


@pytest.mark.parametrize(
    "field",
    ["model", "n", "max_tokens", "stream", "stream_options", "previous_response_id", "input", "other"],
)
def test_a_number_that_is_out_of_range_is_refused_with_its_field(field: str) -> None:
    """Valid JSON of which no value can be made; only the fields that are read here are concerned."""
    value = '[{"role": "user", "content": [1e999]}]' if field == "input" else "1e999"
    content = f'{{"model": "x", "stream": true, "{field}": {value}}}'.encode()
    with pytest.raises(InvalidRequest) as caught:
        for path in (CHAT, "/v1/responses"):
            body = parse_request_body(path, content, RequestLimits())
            body.request_stream_usage(path)
            assert body.previous_response_id is None
    assert caught.value.param == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 129),
        ("max_tokens", 1e9),
        ("max_tokens", "9000000000"),
        ("n", "2"),
        # Engines that take them for true would stream without usage to charge.
        ("stream", "true"),
        ("stream", 1),
        ("stream_options", {"include_usage": "false"}),
        ("stream_options", {"include_usage": 0}),
        ("max_completion_tokens", 2_000_000),
        ("prompt", ["a"] * 1025),
        ("prompt", [[1]] * 1025),
        ("adapters", "/etc"),
        ("draft_model", "/models/x"),
        ("chat_template", "{{ x }}"),
        ("chat_template_kwargs", {"chat_template": "{{ x }}"}),
        ("logits_processors", ["os.system"]),
        ("lora_path", "/etc"),
    ],
)
def test_a_field_over_its_limit_of_another_type_or_with_access_to_files_is_rejected(
    field: str, value: Any
) -> None:
    with pytest.raises(InvalidRequest) as rejected:
        parse_request_body(CHAT, json.dumps({"model": "x", field: value}).encode(), RequestLimits())
    assert rejected.value.param == field


def test_a_long_prompt_of_token_ids_is_one_prompt() -> None:
    fields = {"model": "x", "prompt": list(range(5000))}
    assert parse_request_body("/v1/completions", json.dumps(fields).encode(), RequestLimits()).model == "x"


@pytest.mark.parametrize("path", list(ALLOWED_FIELDS))
@pytest.mark.parametrize(
    "field",
    [
        "mm_processor_kwargs",
        "regex",
        "ebnf",
        "json_schema",
        "guided_json",
        "structured_outputs",
        "vllm_xargs",
        "prompt_embeds",
        "cache_salt",
        "priority",
        "request_id",
        "session_params",
        "return_hidden_states",
        "a_field_of_tomorrow",
        "Model",
        "model\x00",
    ],
)
def test_a_field_that_is_not_listed_never_reaches_an_engine(path: str, field: str) -> None:
    with pytest.raises(InvalidRequest) as rejected:
        parse_request_body(path, json.dumps({"model": "x", field: "y"}).encode(), RequestLimits())
    assert rejected.value.param == field and repr(field) in rejected.value.message


def test_the_template_options_of_a_chat_are_forwarded() -> None:
    fields = {
        "model": "x",
        "chat_template_kwargs": {"enable_thinking": False},
        "continue_final_message": True,
    }
    parsed = parse_request_body(CHAT, json.dumps(fields).encode(), RequestLimits())
    assert json.loads(parsed.encode("x")) == fields


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("regex", None),
        ("mm_processor_kwargs", {}),
        ("repeat_penalty", 1.0),
        ("typical_p", 1),
        ("cache_prompt", True),
        ("keep_alive", "5m"),
        ("usage", {"include": True}),
        ("thinking", {"type": "disabled"}),
        ("reasoning", {"effort": None}),
    ],
)
def test_a_value_without_effect_is_removed(field: str, value: Any) -> None:
    parsed = parse_request_body(CHAT, json.dumps({"model": "x", field: value}).encode(), RequestLimits())
    assert json.loads(parsed.encode("x")) == {"model": "x"}


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "bananas", "content": "x"}], "'bananas'"),
        ([{"role": "User", "content": "x"}], "'User'"),
        ([{"content": "x"}], "None"),
        ([{"role": ["user"], "content": "x"}], "user"),
        ([{"role": "user"}], "no 'content'"),
        ([{"role": "system", "content": "x"}, {"role": "tool", "content": None}], "no 'content'"),
    ],
)
def test_an_unknown_role_and_missing_content_are_refused_on_every_engine(messages: Any, message: str) -> None:
    body = json.dumps({"model": "x", "messages": messages}).encode()
    with pytest.raises(InvalidRequest, match=message) as error:
        parse_request_body(CHAT, body, RequestLimits())
    assert error.value.param == "messages"


@pytest.mark.parametrize(
    "messages",
    [
        b'[{"role":"\\u0075ser","content":"x"},{"role":"assistant"},{"role":"tool","content":[]}]',
        b'"hello"',
        b"[1]",
        b"[]",
    ],
)
def test_other_messages_reach_the_engine(messages: bytes) -> None:
    parse_request_body(CHAT, b'{"model":"x","messages":' + messages + b"}", RequestLimits())
