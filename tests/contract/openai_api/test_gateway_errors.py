"""Errors of the paths of generation: OpenAI's object and headers with each, and the client's exception."""

from collections.abc import Callable
from typing import Any

import openai as sdk
import pytest
from starlette.testclient import TestClient

from app.storage.database import transaction
from app.tables import Deployment, DeploymentStatus, Scope
from tests.contract.openai_api.talking_engine import TalkingEngine
from trainers.configs import EngineKind, Queue

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
CHATS = "/v1/chat/completions"


def add_deployment(name: str, address: str | None = None) -> None:
    status = DeploymentStatus.ready if address else DeploymentStatus.queued
    with transaction() as session:
        session.add(
            Deployment(
                name=name,
                base="b",
                engine=EngineKind.hf,
                queue=Queue.cpu,
                status=status,
                address=address,
            )
        )


def check(response: Any, status: int, code: str | None) -> None:
    """Check the parts that every error has."""
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code), response.text
    assert error.keys() >= {"message", "type", "param", "code"}
    assert error["message"]
    assert response.headers["x-request-id"]
    if "retry-after" in response.headers:
        assert 0 < int(response.headers["retry-after-ms"]) <= 1000 * int(response.headers["retry-after"])


def test_every_error_has_openais_object_and_a_request_id(
    client: TestClient, engine: TalkingEngine, key_of: Callable[..., Any]
) -> None:
    add_deployment("starting")
    for name in ("unreachable", "text-error", "detail-error"):
        add_deployment(name, "http://127.0.0.1:9" if name == "unreachable" else engine.url)
    chat = {"model": "talk", "messages": []}
    parts = (b" " * 2**20 for _ in range(9))
    compressed, announced = {"Content-Encoding": "br"}, {"Content-Length": "99999999"}
    calls: list[tuple[int, str, dict[str, Any]]] = [
        (400, "invalid_request", {"content": b"{"}),
        (404, "model_not_found", {"json": chat | {"model": "none"}}),
        (404, "unknown_url", {"json": chat, "url": "/v1/nothing"}),
        (405, "method_not_allowed", {"json": chat, "method": "PUT"}),
        (413, "request_too_large", {"content": b"", "headers": announced}),
        (413, "request_too_large", {"content": parts}),
        (415, "unsupported_encoding", {"content": b"{}", "headers": compressed}),
        (503, "engine_unavailable", {"json": chat | {"model": "starting"}}),
        (503, "engine_unavailable", {"json": chat | {"model": "unreachable"}}),
    ]
    for status, code, options in calls:
        check(client.request(**({"method": "POST", "url": CHATS} | options)), status, code)
    for name, status in (("text-error", 500), ("detail-error", 422)):
        failed = client.post(CHATS, json=chat | {"model": name})
        check(failed, status, "engine_error")
        assert "details of the engine" in failed.json()["error"]["message"]
    key_of(Scope.admin)
    # The client without a key stays known for a second.
    wrong = client.post(CHATS, json=chat, headers={"Authorization": "Bearer wrong"})
    check(wrong, 401, "invalid_api_key")
    with pytest.raises(sdk.PermissionDeniedError) as denied:
        key_of(Scope.read).chat.completions.create(**chat)
    check(denied.value.response, 403, "forbidden")


def test_a_key_over_its_rate_is_told_the_milliseconds(
    client: TestClient, engine: TalkingEngine, key_of: Callable[..., Any]
) -> None:
    limited = key_of(Scope.inference, requests_per_minute=60)
    chat: dict[str, Any] = {"model": "talk", "messages": [{"role": "user", "content": "one"}]}
    with pytest.raises(sdk.RateLimitError) as caught:
        for _ in range(200):
            limited.chat.completions.create(**chat)
    check(caught.value.response, 429, "rate_limit_exceeded")
    assert caught.value.response.headers["retry-after"] == "1"
    waiting = limited.with_options(max_retries=2)
    assert waiting.chat.completions.create(**chat).choices[0].message.content == "one"
