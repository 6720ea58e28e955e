"""Limits of API keys, in the gateway of the API and in a standalone gateway."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import openai
import pytest
from starlette.testclient import TestClient

from app.keys import service, token_use
from app.keys.schemas import KeyCreate
from app.main import create_app
from app.settings import Settings
from app.storage.database import transaction
from app.tables import Deployment, DeploymentStatus, Scope
from tests.integration.app.test_server import serving
from tests.integration.serving.fake_engine import FakeEngine
from tests.services import free_port, wait_until_open
from trainers.configs import EngineKind, Queue

CHAT = "/v1/chat/completions"
SECOND_NS = 1_000_000_000
TIMEOUT = 60


@pytest.fixture
def engine(settings: Settings) -> Iterator[FakeEngine]:
    """Yield an engine with two ready deployments, named like its models."""
    fake_engine = FakeEngine()
    with transaction() as session:
        for name in ("plain", "endless", "usage", "usage_cut", "uncounted", "scored"):
            values: dict[str, Any] = {
                "base": "hub/base",
                "engine": EngineKind.hf,
                "queue": Queue.cpu,
                "engine_key": "key",
            }
            values |= {"status": DeploymentStatus.ready, "address": fake_engine.url}
            session.add(Deployment(name=name, **values))
    yield fake_engine
    fake_engine.close()


@pytest.fixture
def clock(client: Any) -> SimpleNamespace:
    """Stop the clock of the limits at a time, which a test may change: a busy machine takes seconds."""
    clock = SimpleNamespace(now=SECOND_NS)
    client.app.state.gateway.gateway.rate_limits.clock = lambda: clock.now
    return clock


def make_key(*scopes: Scope, **limits: Any) -> tuple[str, dict[str, str]]:
    with transaction() as session:
        key, secret = service.create_key(session, KeyCreate(name="test", scopes=list(scopes), **limits))
    return key.id, {"Authorization": f"Bearer {secret}"}


def statuses(client: Any, headers: dict[str, str], times: int) -> list[int]:
    return [client.post(CHAT, json={"model": "plain"}, headers=headers).status_code for _ in range(times)]


def test_a_key_over_its_rate_gets_429_with_retry_after(
    client: TestClient, engine: FakeEngine, clock: SimpleNamespace
) -> None:
    _, limited = make_key(Scope.inference, requests_per_minute=2)
    _, free = make_key(Scope.inference)
    assert statuses(client, limited, 2) == [200, 200]
    refused = client.post(CHAT, json={"model": "plain"}, headers=limited)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "30")
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert statuses(client, free, 3) == [200] * 3
    assert client.get("/v1/models", headers=limited).status_code == 200
    clock.now += 30 * SECOND_NS
    assert statuses(client, limited, 2) == [200, 429]


def test_changed_limits_take_effect_while_the_key_is_in_use(
    client: TestClient, engine: FakeEngine, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.gateway.gateway.REFRESH_SECONDS", 0.0)
    key_id, limited = make_key(Scope.inference, requests_per_minute=1, concurrent_requests=4)
    _, admin = make_key(Scope.admin)
    assert statuses(client, limited, 2) == [200, 429]
    changed = client.patch(f"/api/v1/keys/{key_id}", json={"requests_per_minute": None}, headers=admin).json()
    assert (changed["requests_per_minute"], changed["concurrent_requests"]) == (None, 4)
    assert statuses(client, limited, 3) == [200] * 3
    wrong = client.patch(f"/api/v1/keys/{key_id}", json={"requests_per_minute": 0}, headers=admin)
    assert (wrong.status_code, wrong.json()["error"]["fields"][0]["field"]) == (422, "requests_per_minute")
    assert client.patch("/api/v1/keys/key_none", json={}, headers=admin).status_code == 404


def test_the_endpoint_of_the_own_key_returns_its_scopes_and_limits(client: TestClient) -> None:
    local_caller = {
        "key_id": "",
        "scopes": ["admin"],
        "requests_per_minute": None,
        "concurrent_requests": None,
        "tokens_per_day": None,
        "tokens_today": 0,
        "models": None,
    }
    assert client.get("/api/v1/keys/self").json() == local_caller
    key_id, headers = make_key(Scope.read, Scope.inference, requests_per_minute=5)
    own_key = client.get("/api/v1/keys/self", headers=headers).json()
    assert own_key == {
        "key_id": key_id,
        "scopes": ["inference", "read"],
        "requests_per_minute": 5,
        "concurrent_requests": None,
        "tokens_per_day": None,
        "tokens_today": 0,
        "models": None,
    }
    assert client.get("/api/v1/keys/self").status_code == 401


def test_a_key_over_its_tokens_of_the_day_gets_429_until_the_next(
    client: TestClient, engine: FakeEngine
) -> None:
    key_id, limited = make_key(Scope.inference, tokens_per_day=20)
    _, admin = make_key(Scope.admin)
    # Each response has 8 tokens; the one that crosses the limit is complete.
    assert statuses(client, limited, 4) == [200, 200, 200, 429]
    refused = client.post(CHAT, json={"model": "plain"}, headers=limited)
    error = refused.json()["error"]
    assert (error["code"], error["type"]) == ("insufficient_quota", "insufficient_quota")
    assert "T00:00Z" in error["message"] and 0 < int(refused.headers["retry-after"]) <= 86_400
    # OpenAI's client would repeat it within seconds.
    assert refused.headers["x-should-retry"] == "false"
    assert refused.headers["x-ratelimit-remaining-tokens"] == "0"
    secret = limited["Authorization"].split()[1]
    sdk = openai.OpenAI(base_url="http://127.0.0.1/v1", api_key=secret, http_client=client)
    with pytest.raises(openai.RateLimitError):
        sdk.chat.completions.create(model="plain", messages=[])
    assert engine.request_counts["plain"] == 3
    wait_for_tokens(client, key_id, admin, 24)


def wait_for_tokens(client: Any, key_id: str, admin: dict[str, str], tokens: int) -> None:
    deadline = time.monotonic() + TIMEOUT
    while (found := client.get(f"/api/v1/keys/{key_id}", headers=admin).json()["tokens_today"]) != tokens:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


def test_all_gateways_of_a_database_count_the_same_tokens(settings: Settings, engine: FakeEngine) -> None:
    _, limited = make_key(Scope.inference, tokens_per_day=20)
    for expected in ([200, 200], [200, 429]):
        # A gateway reports what is left when it stops.
        with TestClient(create_app(), base_url="http://127.0.0.1", client=("127.0.0.1", 50000)) as gateway:
            assert statuses(gateway, limited, 2) == expected


def test_the_tokens_of_a_stream_count_with_and_without_its_usage(
    client: TestClient, engine: FakeEngine
) -> None:
    key_id, limited = make_key(Scope.inference, tokens_per_day=1000)
    _, admin = make_key(Scope.admin)
    body = {"model": "usage", "stream": True}
    assert b"usage" not in client.post(CHAT, json=body, headers=limited).content
    wait_for_tokens(client, key_id, admin, 8)
    for number, options in enumerate(({"include_usage": False}, {"include_obfuscation": False}), start=2):
        stream = client.post(CHAT, json=body | {"stream_options": options}, headers=limited)
        assert b"usage" not in stream.content
        assert engine.bodies[-1]["stream_options"] == options | {"include_usage": True}
        wait_for_tokens(client, key_id, admin, 8 * number)


def test_the_tokens_of_a_stream_count_once_its_usage_has_arrived(
    client: TestClient, engine: FakeEngine
) -> None:
    key_id, limited = make_key(Scope.inference, tokens_per_day=1000)
    _, admin = make_key(Scope.admin)
    stream = client.post(CHAT, json={"model": "usage_cut", "stream": True}, headers=limited).content
    assert b"prompt_tokens" not in stream
    assert b"engine_disconnected" in stream
    wait_for_tokens(client, key_id, admin, 8)


def test_the_tokens_of_a_response_without_usage_are_estimated(client: TestClient, engine: FakeEngine) -> None:
    key_id, limited = make_key(Scope.inference, tokens_per_day=1000)
    _, admin = make_key(Scope.admin)
    client.post(CHAT, json={"model": "uncounted"}, headers=limited).raise_for_status()
    wait_for_tokens(client, key_id, admin, (400 + len(b'{"model":"uncounted"}')) // 4)


def test_the_tokens_of_a_response_count_wherever_its_usage_is(client: TestClient, engine: FakeEngine) -> None:
    key_id, limited = make_key(Scope.inference, tokens_per_day=1000)
    _, admin = make_key(Scope.admin)
    client.post(CHAT, json={"model": "scored", "prompt_logprobs": 1}, headers=limited).raise_for_status()
    wait_for_tokens(client, key_id, admin, 8)


def test_a_total_over_several_days_counts_on_the_days_on_which_it_grew(settings: Settings) -> None:
    key_id, _ = make_key(Scope.inference)
    with transaction() as session:
        yesterday = time.strftime("%Y-%m-%d", time.gmtime(time.time() - 86_400))
        token_use.record_tokens(session, "batch_x", [{"key_id": key_id, "day": yesterday, "tokens": 5}])
    for total, today in ((5, {}), (9, {key_id: 4}), (9, {key_id: 4}), (11, {key_id: 6})):
        with transaction() as session:
            token_use.record_total(session, key_id, "batch_x", total)
            assert token_use.count_tokens_today(session, [key_id]) == today


def test_a_repeated_or_late_report_changes_nothing(settings: Settings) -> None:
    key_id, _ = make_key(Scope.inference)
    day = time.strftime("%Y-%m-%d", time.gmtime())
    for reporter, tokens, total in (("a", 5, 5), ("a", 9, 9), ("a", 5, 9), ("b", 1, 10)):
        with transaction() as session:
            items = [{"key_id": each, "day": day, "tokens": tokens} for each in (key_id, "key_gone")]
            assert token_use.record_tokens(session, reporter, items) == {key_id: total}


def test_a_report_over_http_requires_the_scope_write(client: TestClient) -> None:
    key_id, reader = make_key(Scope.inference, Scope.read)
    _, writer = make_key(Scope.write)
    item = {"key_id": key_id, "day": time.strftime("%Y-%m-%d", time.gmtime()), "tokens": 7}
    body = {"reporter": "gateway_" + "0" * 24, "items": [item]}
    assert client.post("/api/v1/token-use", json=body, headers=reader).status_code == 403
    recorded = client.post("/api/v1/token-use", json=body, headers=writer)
    assert recorded.json() == {"items": [{"key_id": key_id, "tokens": 7}]}


def test_a_key_uses_and_sees_the_models_that_it_may_use(client: TestClient, engine: FakeEngine) -> None:
    _, limited = make_key(Scope.inference, models=["pla*", "other"])
    assert statuses(client, limited, 1) == [200]
    refused = client.post(CHAT, json={"model": "usage"}, headers=limited)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_not_allowed")
    assert [model["id"] for model in client.get("/v1/models", headers=limited).json()["data"]] == ["plain"]
    assert client.get("/v1/models/usage", headers=limited).status_code == 403
    assert client.get("/v1/models/plain", headers=limited).status_code == 200
    missing = client.get("/v1/models/plaice", headers=limited)
    assert missing.status_code == 404 and "usage" not in missing.json()["error"]["message"]


def test_responses_of_a_limited_key_show_what_is_left(
    client: TestClient, engine: FakeEngine, clock: SimpleNamespace
) -> None:
    _, limited = make_key(Scope.inference, requests_per_minute=60, tokens_per_day=100)
    _, free = make_key(Scope.inference)
    for left in (59, 58):
        headers = client.post(CHAT, json={"model": "plain"}, headers=limited).headers
        assert headers["x-ratelimit-limit-requests"] == "60"
        assert headers["x-ratelimit-remaining-requests"] == str(left)
        assert re.fullmatch(r"[0-9.]+s", headers["x-ratelimit-reset-requests"])
    assert (headers["x-ratelimit-limit-tokens"], headers["x-ratelimit-remaining-tokens"]) == ("100", "92")
    response = client.post(CHAT, json={"model": "plain"}, headers=free)
    assert not [name for name in response.headers if name.startswith("x-ratelimit")]


@contextmanager
def standalone_gateway(url: str, folder: Path, key: str, *arguments: str) -> Iterator[str]:
    """Start a standalone gateway for the service at `url`; yield its address."""
    port = free_port()
    command = [sys.executable, "-m", "serving.gateway", "--api", url, "--port", str(port), *arguments]
    environment = os.environ | {"SERVICE_KEY": key}
    with (folder / "gateway.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--api-key-env", "SERVICE_KEY"], env=environment, stdout=log, stderr=log
        )
    try:
        wait_until_open(port)
        # Its processes take connections once they have started.
        httpx2.get(f"http://127.0.0.1:{port}/health", timeout=TIMEOUT)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(TIMEOUT)


def test_a_standalone_gateway_checks_keys_and_counts_over_all_processes(
    settings: Settings, engine: FakeEngine, tmp_path: Path
) -> None:
    _, admin = make_key(Scope.admin)
    # One more becomes available after 20 seconds.
    key_id, limited = make_key(Scope.inference, requests_per_minute=3, concurrent_requests=2)
    _, reader = make_key(Scope.read)
    key = admin["Authorization"].split()[1]
    with (
        serving(tmp_path, "--no-worker") as (_, service_url),
        standalone_gateway(service_url, tmp_path, key, "--workers", "2") as url,
    ):
        refused = [
            httpx2.get(f"{url}/v1/models", headers=h, timeout=TIMEOUT).status_code for h in ({}, reader)
        ]
        assert refused == [401, 403]
        # Each call opens a new connection, so both processes get some of them.
        responses = [
            httpx2.post(url + CHAT, json={"model": "plain"}, headers=limited, timeout=TIMEOUT)
            for _ in range(9)
        ]
        assert sorted(response.status_code for response in responses) == [200] * 3 + [429] * 6
        with httpx2.Client(base_url=service_url, timeout=TIMEOUT) as service_client:
            wait_for_tokens(service_client, key_id, admin, 24)
        httpx2.delete(f"{service_url}/api/v1/keys/{key_id}", headers=admin, timeout=TIMEOUT)
        deadline = time.monotonic() + TIMEOUT
        while httpx2.get(f"{url}/v1/models", headers=limited, timeout=TIMEOUT).status_code != 401:
            assert time.monotonic() < deadline
            time.sleep(0.2)


def test_a_disconnected_client_no_longer_counts_as_concurrent(
    settings: Settings, engine: FakeEngine, tmp_path: Path
) -> None:
    _, limited = make_key(Scope.inference, concurrent_requests=1)
    key = limited["Authorization"].split()[1]
    with (
        serving(tmp_path, "--no-worker") as (_, service_url),
        standalone_gateway(service_url, tmp_path, key) as url,
    ):
        for address in (service_url, url):
            check_slot_is_released(address, key)


def check_slot_is_released(address: str, key: str) -> None:
    with openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0) as sdk:
        stream = sdk.chat.completions.create(model="endless", messages=[], stream=True)
        next(stream)
        with pytest.raises(openai.RateLimitError, match="its limit"):
            sdk.chat.completions.create(model="plain", messages=[])
        stream.close()
        # The SDK's delay between attempts gives the gateway time to notice.
        sdk.with_options(max_retries=10).chat.completions.create(model="plain", messages=[])
