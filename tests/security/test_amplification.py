"""A small request causes no large work: its cost is bounded before the work begins.

Attacks: many completions, prompts and tokens; deep, long and compressed bodies; wide pages and long specs.
"""

import gzip
import json
import time
from typing import Any

import pytest
from starlette.testclient import TestClient

from serving.gateway.request_body import RequestLimits, parse_request_body
from serving.http.content_encoding import unpack_body
from serving.http.errors import ApiError, InvalidRequest
from serving.http.limits import MAX_BODY_BYTES
from tests.security.regression import Regression, ignore

CHAT, COMPLETION, EMBEDDING = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
EXCESSIVE: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"n": 129}),
    (CHAT, {"n": 1e300}),
    (CHAT, {"n": "129"}),
    (COMPLETION, {"best_of": 10**9}),
    (CHAT, {"max_tokens": 10**12}),
    (CHAT, {"max_completion_tokens": 10**12}),
    ("/v1/responses", {"max_output_tokens": 10**12}),
    (COMPLETION, {"prompt": ["x"] * 1025}),
    (COMPLETION, {"prompt": [[1]] * 1025}),
    (EMBEDDING, {"input": ["x"] * 2049}),
]
STAGE = {"stage": "sft", "base": "org/model", "dataset": "d"}


@pytest.mark.parametrize(("path", "fields"), EXCESSIVE)
def test_the_work_of_a_request_to_a_model_has_limits(path: str, fields: dict[str, Any]) -> None:
    body = json.dumps({"model": "m", **fields}).encode()
    with pytest.raises(InvalidRequest):
        parse_request_body(path, body, RequestLimits())


def test_a_repeated_key_does_not_hide_the_value_that_is_used() -> None:
    body = b'{"model": "m", "n": 1, "n": 1000}'
    with pytest.raises(InvalidRequest):
        parse_request_body(CHAT, body, RequestLimits())
    kept = parse_request_body(CHAT, b'{"model": "m", "n": 1000, "n": 1}', RequestLimits())
    assert json.loads(kept.encode("m"))["n"] == 1


@pytest.mark.parametrize("levels", [1, 2])
def test_a_compressed_body_is_unpacked_to_the_limit_and_no_further(levels: int) -> None:
    bomb = b"\0" * (64 << 20)
    for _ in range(levels):
        bomb = gzip.compress(bomb, 1)
    started = time.process_time()
    with pytest.raises(ApiError):
        unpacked = unpack_body(b"gzip", bomb)
        unpack_body(b"gzip", unpacked)
    assert time.process_time() - started < 10


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 1_000_000,
        b'{"a":' * 200_000,
        b'{"name": "x", "stages": [' + b"{}," * 100_000 + b"{}]}",
        json.dumps({"name": "x", "stages": [STAGE] * 1000}).encode(),
        json.dumps({"name": "x" * 1_000_000, "stages": [STAGE]}).encode(),
        json.dumps({"name": "x", "stages": [STAGE], "labels": {f"k{i}": "v" for i in range(1000)}}).encode(),
        b'{"name": "x", "priority": ' + b"9" * 5000 + b"}",
    ],
)
def test_an_odd_spec_is_refused_soon(client: TestClient, content: bytes) -> None:
    started = time.process_time()
    headers = {"Content-Type": "application/json"}
    refused = client.post("/api/v1/jobs", content=content, headers=headers)
    assert refused.status_code in (400, 413, 422)
    assert len(refused.content) < 100_000 and time.process_time() - started < 10


def test_a_json_body_has_a_limit(client: TestClient) -> None:
    content = b'{"name": "' + b"x" * MAX_BODY_BYTES + b'"}'
    refused = client.post("/api/v1/jobs", content=content, headers={"Content-Type": "application/json"})
    assert refused.status_code == 413
    assert client.post(CHAT, content=content).status_code == 413


@pytest.mark.parametrize("path", ["/jobs", "/datasets", "/models", "/deployments", "/workers", "/keys"])
@pytest.mark.parametrize("limit", [0, -1, 10**6, 2**63])
def test_a_page_has_a_limit(client: TestClient, path: str, limit: int) -> None:
    assert client.get(f"/api/v1{path}", params={"limit": limit}).status_code == 422


REGRESSIONS = [
    Regression(
        "requests have no limits",
        "serving.gateway.request_body:_check_limits",
        ignore,
        "test_the_work_of_a_request_to_a_model_has_limits",
    ),
    Regression(
        "bodies are unpacked whole",
        "tests.security.test_amplification:unpack_body",
        lambda _, body: gzip.decompress(body),
        "test_a_compressed_body_is_unpacked_to_the_limit_and_no_further",
    ),
]
