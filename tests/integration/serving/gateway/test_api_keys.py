"""A standalone gateway looks API keys up at the service, and tolerates an unreachable service."""

import asyncio
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

import pytest

from serving.gateway.downstream import ClientIdentity
from serving.gateway.standalone import api_keys
from serving.gateway.standalone.api_keys import KeyVerifier
from serving.http.errors import EngineUnavailable, InvalidApiKey, PermissionDenied

NO_KEY = {"key_id": "", "scopes": ["admin"], "requests_per_minute": None, "concurrent_requests": None}
KEY = NO_KEY | {"key_id": "key_a", "scopes": ["inference"], "requests_per_minute": 5}


class FakeService:
    """A fake of the service: it responds with `status` and `body`, unless it hangs."""

    def __init__(self) -> None:
        self.tokens: list[str | None] = []
        self.status, self.body = 200, json.dumps(KEY).encode()
        self.unblocked = Event()
        self.unblocked.set()

    def set_response(self, status: int, body: bytes) -> None:
        self.status, self.body = status, body


@pytest.fixture
def service_and_keys() -> Iterator[tuple[FakeService, KeyVerifier]]:
    service = FakeService()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            service.tokens.append(self.headers["Authorization"])
            service.unblocked.wait(120)
            self.send_response(service.status)
            self.end_headers()
            self.wfile.write(service.body)

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        keys = KeyVerifier(f"http://127.0.0.1:{server.server_port}")
        yield service, keys
        service.unblocked.set()
        server.shutdown()


def identity(token: str = "ts_a", **further: Any) -> ClientIdentity:
    return ClientIdentity(f"Bearer {token}".encode(), b"127.0.0.1:8000", "127.0.0.1", **further)


def test_concurrent_requests_share_one_lookup(service_and_keys: tuple[FakeService, KeyVerifier]) -> None:
    service, keys = service_and_keys

    async def send_requests() -> list[Any]:
        return await asyncio.gather(*(keys(identity()) for _ in range(30)))

    callers = asyncio.run(send_requests())
    assert {(caller.key_id, caller.requests_per_minute) for caller in callers} == {("key_a", 5)}
    assert service.tokens == ["Bearer ts_a"]


@pytest.mark.parametrize(
    "response", [(500, b"x"), (200, b"<html>"), (401, b"<html>"), (200, b"{}"), (404, b"")]
)
def test_an_unexpected_response_does_not_invalidate_a_known_key(
    service_and_keys: tuple[FakeService, KeyVerifier],
    monkeypatch: pytest.MonkeyPatch,
    response: tuple[int, bytes],
) -> None:
    service, keys = service_and_keys
    asyncio.run(keys(identity()))
    monkeypatch.setattr(api_keys, "CACHE_SECONDS", 0.0)
    service.set_response(*response)
    assert asyncio.run(keys(identity())).key_id == "key_a"
    with pytest.raises(EngineUnavailable):
        asyncio.run(keys(identity("ts_unknown")))


def test_a_hanging_service_delays_a_known_key_only_briefly(
    service_and_keys: tuple[FakeService, KeyVerifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, keys = service_and_keys
    asyncio.run(keys(identity()))
    monkeypatch.setattr(api_keys, "CACHE_SECONDS", 0.0)
    monkeypatch.setattr(api_keys, "MAX_WAIT_SECONDS", 0.1)
    # Longer than the test: the requests end although the lookup has not.
    keys.api.timeout = 1000.0
    service.unblocked.clear()

    async def send_requests() -> None:
        callers = await asyncio.gather(*(keys(identity()) for _ in range(20)))
        assert {caller.key_id for caller in callers} == {"key_a"}
        (lookup,) = keys.lookups.values()
        while len(service.tokens) < 2:
            await asyncio.sleep(0.01)
        service.unblocked.set()
        await lookup

    asyncio.run(send_requests())
    assert len(service.tokens) == 2


def test_a_revoked_key_is_rejected_after_the_next_lookup(
    service_and_keys: tuple[FakeService, KeyVerifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, keys = service_and_keys
    asyncio.run(keys(identity()))
    service.set_response(401, b'{"error": {"message": "revoked"}}')
    assert asyncio.run(keys(identity())).key_id == "key_a"
    monkeypatch.setattr(api_keys, "CACHE_SECONDS", 0.0)
    for _ in range(2):
        with pytest.raises(InvalidApiKey, match="revoked"):
            asyncio.run(keys(identity()))
    assert keys.keys == {}


def test_cached_rejections_are_bounded_and_evict_no_key(
    service_and_keys: tuple[FakeService, KeyVerifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, keys = service_and_keys
    monkeypatch.setattr(api_keys, "MAX_REJECTIONS", 5)
    asyncio.run(keys(identity()))
    service.set_response(401, b'{"error": {"message": "unknown"}}')
    for number in range(12):
        with pytest.raises(InvalidApiKey):
            asyncio.run(keys(identity(f"ts_{number}")))
    assert len(keys.rejections) <= 5 and len(keys.keys) == 1


@pytest.mark.parametrize("token", ["x" * 201, "ts_\x00", "ts_é"])
def test_an_impossible_key_is_rejected_without_a_lookup(
    service_and_keys: tuple[FakeService, KeyVerifier], token: str
) -> None:
    service, keys = service_and_keys
    with pytest.raises(InvalidApiKey, match="printable"):
        asyncio.run(keys(ClientIdentity(b"Bearer " + token.encode("latin-1"), b"localhost", "127.0.0.1")))
    assert service.tokens == []


def test_without_keys_only_local_clients_without_a_proxy_are_served(
    service_and_keys: tuple[FakeService, KeyVerifier],
) -> None:
    service, keys = service_and_keys
    service.set_response(200, json.dumps(NO_KEY).encode())
    assert asyncio.run(keys(identity())).key_id == ""
    for other in (
        identity(forwarded=True),
        ClientIdentity(None, b"evil.example", "127.0.0.1"),
        ClientIdentity(None, b"x", "10.0.0.7"),
    ):
        with pytest.raises(PermissionDenied):
            asyncio.run(keys(other))


def test_a_key_without_the_scope_is_rejected(service_and_keys: tuple[FakeService, KeyVerifier]) -> None:
    service, keys = service_and_keys
    service.set_response(200, json.dumps(KEY | {"scopes": ["read"]}).encode())
    with pytest.raises(PermissionDenied, match="inference"):
        asyncio.run(keys(identity()))
