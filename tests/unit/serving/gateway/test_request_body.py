"""Request bodies: the model name, refused fields and limits; and the model name in responses."""

import json
from typing import Any

import pytest

from serving.gateway.request_body import (
    RequestLimits,
    model_name_replacements,
    parse_request_body,
    replace_model_name,
)
from serving.http.errors import InvalidRequest


@pytest.mark.parametrize(
    ("body", "model", "sent"),
    [
        (b' { "a" : [1,  2.50], "model" : "x" } ', "x", b'{"a":[1,  2.50],"model":"up"}'),
        (b'{"model":"x","model":"y"}', "y", b'{"model":"up"}'),
        (b'{"mod\\u0065l":"y","m":{"model":"z"}}', "y", b'{"model":"up","m":{"model":"z"}}'),
        (
            '{"model":"한","t":"\\ud55c\\"model\\":"}'.encode(),
            "한",
            b'{"model":"up","t":"\\ud55c\\"model\\":"}',
        ),
        (b'{"big":123456789012345678901234567890,"model":"x"}', "x", None),
    ],
)
def test_only_the_model_name_of_a_body_changes(body: bytes, model: str, sent: bytes | None) -> None:
    parsed = parse_request_body(body, RequestLimits())
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
        b'{"model":"x","t":"\xff"}',
        b'{"model":"x","t":NaN}',
        b'{"model":"x"}{}',
        b'{"model":"x",}',
        b'{"model":null}',
        b'{"model":"x","t":' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
)
def test_json_that_engines_might_parse_differently_is_rejected(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse_request_body(body, RequestLimits())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 129),
        ("max_tokens", 1e9),
        ("max_tokens", "9000000000"),
        ("n", "2"),
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
def test_a_field_over_its_limit_or_with_access_to_files_is_rejected(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as rejected:
        parse_request_body(json.dumps({"model": "x", field: value}).encode(), RequestLimits())
    assert rejected.value.param == field


def test_a_long_prompt_of_token_ids_is_one_prompt() -> None:
    fields = {"model": "x", "prompt": list(range(5000)), "chat_template_kwargs": {"enable_thinking": False}}
    assert parse_request_body(json.dumps(fields).encode(), RequestLimits()).model == "x"
