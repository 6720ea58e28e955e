"""The gateway's further paths: responses, whose streams end in another way, and embeddings."""

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.integration.serving.conftest import Server, gateway_over, wait_for
from tests.integration.serving.engine_stand_in import FakeEngine


@pytest.fixture(scope="module")
def front(stand_in: FakeEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    routes = [
        {"name": name, "base_url": stand_in.url}
        for name in ("plain", "responds", "responds-half", "pathless")
    ]
    with gateway_over(routes, tmp_path_factory.mktemp("front")) as server:
        yield server


def streamed(front: Server, model: str) -> bytes:
    body = json.dumps({"model": model, "input": "hello", "stream": True}).encode()
    with urllib.request.urlopen(f"{front.url}/v1/responses", body, timeout=20) as answer:
        return answer.read()


def logged(front: Server, model: str) -> dict[str, Any]:
    wait_for(lambda: f'"{model}"' in front.log.read_text())
    return json.loads([line for line in front.log.read_text().splitlines() if f'"{model}"' in line][-1])


def test_a_stream_that_comes_to_its_last_event_is_passed_unchanged_and_counted(front: Server) -> None:
    answer = streamed(front, "responds")
    assert answer.count(b"event: ") == 4 and b"event: error" not in answer
    line = logged(front, "responds")
    assert (line["status"], line["path"]) == (200, "/v1/responses")
    assert (line["prompt_tokens"], line["completion_tokens"]) == (3, 5)


def test_a_stream_without_its_last_event_ends_with_an_error_that_carries_the_next_number(
    front: Server,
) -> None:
    name, data = streamed(front, "responds-half").decode().strip().split("\n")[-2:]
    error = json.loads(data.removeprefix("data: "))
    assert (name, error["type"], error["sequence_number"]) == ("event: error", "error", 8)
    assert "broke off" in error["message"]
    assert logged(front, "responds-half")["status"] == 502


def test_the_sdk_raises_what_broke_a_response(front: Server) -> None:
    with OpenAI(base_url=f"{front.url}/v1", api_key="x", max_retries=0) as sdk:
        stream = sdk.responses.create(model="responds-half", input="hello", stream=True)
        with pytest.raises(openai.APIError, match="broke off"):
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
def test_what_would_need_kept_answers_or_too_much_is_refused_by_name(
    front: Server, field: str, value: Any
) -> None:
    status, answer = front.post("/v1/responses", {"model": "plain", "input": "hello", field: value})
    assert (status, answer["error"]["param"]) == (400, field)


def test_what_asks_for_nothing_kept_is_passed_on(front: Server, stand_in: FakeEngine) -> None:
    asked = {"model": "plain", "input": "x", "previous_response_id": None, "background": False}
    assert front.post("/v1/responses", asked)[0] == 200
    assert stand_in.seen[-1] == asked


def test_a_kept_response_cannot_be_fetched(front: Server) -> None:
    status, answer = front.get("/v1/responses/resp_1")
    assert (status, answer["error"]["code"]) == (404, "unknown_url")


def test_texts_to_embed_reach_the_engine_up_to_a_number(front: Server, stand_in: FakeEngine) -> None:
    assert front.post("/v1/embeddings", {"model": "plain", "input": ["a", "b"]})[0] == 200
    assert stand_in.seen[-1] == {"model": "plain", "input": ["a", "b"]}
    status, answer = front.post("/v1/embeddings", {"model": "plain", "input": ["a"] * 1025})
    assert (status, answer["error"]["param"]) == (400, "input")


def test_an_engine_without_the_path_is_told_in_openais_shape(front: Server) -> None:
    status, answer = front.post("/v1/embeddings", {"model": "pathless", "input": "a"})
    assert (status, answer["error"]["code"]) == (404, "unknown_url")
    assert "'pathless' does not serve /v1/embeddings" in answer["error"]["message"]
