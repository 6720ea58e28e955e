"""Errors of engines, which clients see in the form of this API whatever the engine."""

import json
from typing import Any

import pytest

from serving.gateway.proxy.engine_errors import describe_engine_error

CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
LONG = "This model's maximum context length is 512 tokens. However, your prompt contains 10050 characters."
LARGE = "max_tokens=4096 cannot be greater than max_model_len=512. Please request fewer output tokens."


# As vLLM 0.32.0 sends them.
@pytest.mark.parametrize(
    ("path", "status", "message", "param", "expected"),
    [
        (CHAT, 400, LONG, "input_text", ("context_length_exceeded", "messages")),
        (TEXT, 400, LONG, "input_text", ("context_length_exceeded", "prompt")),
        (RESPONSES, 400, LONG, "input_tokens", ("context_length_exceeded", "input")),
        (CHAT, 400, LARGE, "max_tokens", ("max_tokens_too_large", "max_tokens")),
        (
            CHAT,
            400,
            "1 validation error",
            "body.response_format.type",
            ("invalid_request", "response_format"),
        ),
        (CHAT, 400, "n must be at least 1, got 0.", None, ("invalid_request", "n")),
        (CHAT, 400, "Grammar error: x", None, ("invalid_request", None)),
        (CHAT, 404, "The model `nope` does not exist.", "model", ("model_not_found", "model")),
        (CHAT, 429, "full", None, ("rate_limit_exceeded", None)),
        (CHAT, 500, "EngineCore encountered an issue.", None, ("engine_error", None)),
    ],
)
def test_an_error_of_vllm_gets_the_code_and_the_parameter_of_ours(
    path: str, status: int, message: str, param: str | None, expected: tuple[str, str | None]
) -> None:
    body = {"error": {"message": message, "type": "BadRequestError", "param": param, "code": status}}
    error = describe_engine_error("m", path, status, b"7", json.dumps(body).encode())
    assert error is not None
    assert (error.code, error.param) == expected
    assert (error.status, error.message, error.retry_after_seconds) == (status, message, 7)
    assert error.type == ("server_error" if status == 500 else "invalid_request_error")


def test_an_error_of_our_engines_is_forwarded_as_it_is() -> None:
    body = b'{"error":{"message":"full","type":"server_error","param":null,"code":"full"}}'
    assert describe_engine_error("m", CHAT, 429, b"", body) is None


@pytest.mark.parametrize(
    "body", [b"Not Found", b'{"error": "text"}', b'{"error": {"message": 5}}', b'{"error"', b"[" * 99_999]
)
def test_any_other_body_is_quoted(body: bytes) -> None:
    error: Any = describe_engine_error("m", CHAT, 422, b"", body)
    assert (error.status, error.code) == (422, "engine_error")
    assert error.message.startswith("The engine of 'm' responded with status 422: ")
