"""A request to a model carries the fields of OpenAI's API and the listed extensions, and no others.

Attacks: fields with which vLLM, SGLang and mlx-lm read files, load code, call other hosts, compile patterns
or take tensors, under their own names, escaped and repeated.
"""

import json

import pytest

from serving.gateway.request_body import ALLOWED_FIELDS, RequestLimits, parse_request_body
from serving.http.errors import InvalidRequest
from tests.security.regression import Regression

PATHS = list(ALLOWED_FIELDS)
HOSTILE_FIELDS = [
    "mm_processor_kwargs",
    "media_io_kwargs",
    "regex",
    "guided_regex",
    "guided_grammar",
    "structured_outputs",
    "vllm_xargs",
    "prompt_embeds",
    "input_embeds",
    "kv_transfer_params",
    "cache_salt",
    "priority",
    "lora_path",
    "lora_request",
    "custom_logit_processor",
    "custom_params",
    "logits_processors",
    "return_hidden_states",
    "bootstrap_host",
    "session_params",
    "adapter",
    "adapters",
    "draft_model",
    "model_path",
    "chat_template",
    "trust_remote_code",
    "role_mapping",
    "extra_body",
    "__class__",
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("field", HOSTILE_FIELDS)
def test_a_field_that_is_not_listed_reaches_no_engine(path: str, field: str) -> None:
    value = {"x": "y"}
    escaped = f'"\\u{ord(field[0]):04x}{field[1:]}"'
    bodies = [
        json.dumps({"model": "m", field: value}),
        json.dumps({"model": "m", field: value}).replace(f'"{field}"', escaped),
        f'{{"model": "m", "{field}": null, "{field}": 1}}',
    ]
    for body in bodies:
        with pytest.raises(InvalidRequest) as refused:
            parse_request_body(path, body.encode(), RequestLimits())
        assert refused.value.param == field


@pytest.mark.parametrize("path", PATHS)
def test_another_spelling_is_another_field(path: str) -> None:
    for field in ("Model", "MODEL", "model ", "temperature\u200b", "Temperature"):
        with pytest.raises(InvalidRequest):
            parse_request_body(path, json.dumps({"model": "m", field: 1}).encode(), RequestLimits())


@pytest.mark.parametrize("path", PATHS)
def test_the_engine_reads_the_model_that_was_checked(path: str) -> None:
    """Of a repeated key the last value counts, here and in the body that the engine gets."""
    parsed = parse_request_body(path, b'{"model": "secret", "model": "m"}', RequestLimits())
    assert parsed.model == "m"
    assert parsed.encode("upstream").count(b'"model"') == 1
    assert json.loads(parsed.encode("upstream"))["model"] == "upstream"


REGRESSIONS = [
    Regression(
        "unknown fields are forwarded",
        "serving.gateway.request_body:_remove_neutral_fields",
        lambda path, fields: None,
        "test_a_field_that_is_not_listed_reaches_no_engine",
    ),
    Regression(
        "spellings are not compared exactly",
        "serving.gateway.request_body:_remove_neutral_fields",
        lambda path, fields: [fields.pop(name) for name in set(fields) - ALLOWED_FIELDS[path]],
        "test_another_spelling_is_another_field",
    ),
]
