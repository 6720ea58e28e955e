"""The gateway's responses endpoint, whose streams end with an event, and embeddings."""

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI

from tests.integration.serving.conftest import WAIT_SECONDS, Server, gateway_over, wait_for
from tests.integration.serving.fake_engine import FakeEngine


@pytest.fixture(scope="module")
def gateway(fake_engine: FakeEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    routes = [
        {"name": name, "base_url": fake_engine.url}
        for name in ("plain", "response", "partial-response", "unknown-path")
    ]
    with gateway_over(routes, tmp_path_factory.mktemp("gateway")) as server:
        yield server


def read_stream(gateway: Server, model: str) -> bytes:
    body = {"model": model, "input": "hello", "stream": True}
    content: bytes = httpx2.post(f"{gateway.url}/v1/responses", json=body, timeout=WAIT_SECONDS).content
    return content


def read_log(gateway: Server, model: str) -> dict[str, Any]:
    wait_for(lambda: f'"{model}"' in gateway.log.read_text())
    lines = [line for line in gateway.log.read_text().splitlines() if f'"{model}"' in line]
    record: dict[str, Any] = json.loads(lines[-1])
    return record


def test_a_complete_stream_is_forwarded_unchanged_and_counted(gateway: Server) -> None:
    stream = read_stream(gateway, "response")
    assert stream.count(b"event: ") == 4 and b"event: error" not in stream
    line = read_log(gateway, "response")
    assert (line["status"], line["path"]) == (200, "/v1/responses")
    assert (line["prompt_tokens"], line["completion_tokens"]) == (3, 5)


def test_an_incomplete_stream_ends_with_an_error_that_has_the_next_sequence_number(
    gateway: Server,
) -> None:
    name, data = read_stream(gateway, "partial-response").decode().strip().split("\n")[-2:]
    error = json.loads(data.removeprefix("data: "))
    assert (name, error["type"], error["sequence_number"]) == ("event: error", "error", 8)
    assert "closed the connection" in error["message"]
    assert read_log(gateway, "partial-response")["status"] == 502


def test_the_sdk_raises_the_error_of_an_incomplete_stream(gateway: Server) -> None:
    with OpenAI(base_url=f"{gateway.url}/v1", api_key="x", max_retries=0) as sdk:
        stream = sdk.responses.create(model="partial-response", input="hello", stream=True)
        with pytest.raises(openai.APIError, match="closed the connection"):
            list(stream)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("previous_response_id", "resp_1"),
        ("conversation", {"id": "conv_1"}),
        ("background", True),
        ("max_output_tokens", 2_000_000),
    ],
)
def test_fields_that_need_stored_responses_or_exceed_limits_are_rejected(
    gateway: Server, field: str, value: Any
) -> None:
    status, body = gateway.post("/v1/responses", {"model": "plain", "input": "hello", field: value})
    assert (status, body["error"]["param"]) == (400, field)


def test_empty_stateful_fields_are_forwarded(gateway: Server, fake_engine: FakeEngine) -> None:
    request = {"model": "plain", "input": "x", "previous_response_id": None, "background": False}
    assert gateway.post("/v1/responses", request)[0] == 200
    assert fake_engine.bodies[-1] == request


def test_a_stored_response_cannot_be_fetched(gateway: Server) -> None:
    status, body = gateway.get("/v1/responses/resp_1")
    assert (status, body["error"]["code"]) == (404, "unknown_url")


def test_embedding_inputs_are_forwarded_up_to_a_limit(gateway: Server, fake_engine: FakeEngine) -> None:
    assert gateway.post("/v1/embeddings", {"model": "plain", "input": ["a", "b"]})[0] == 200
    assert fake_engine.bodies[-1] == {"model": "plain", "input": ["a", "b"]}
    status, body = gateway.post("/v1/embeddings", {"model": "plain", "input": ["a"] * 2049})
    assert (status, body["error"]["param"]) == (400, "input")


def test_an_unknown_path_of_the_engine_becomes_openais_error(gateway: Server) -> None:
    status, body = gateway.post("/v1/embeddings", {"model": "unknown-path", "input": "a"})
    assert (status, body["error"]["code"]) == (404, "unknown_url")
    assert "'unknown-path' does not serve /v1/embeddings" in body["error"]["message"]
