"""A gateway that stands alone asks the service who a caller is, and bears with a service that is away."""

import asyncio
import json
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

import pytest

from serving.gateway.gateway import ClientIdentity
from serving.gateway.standalone import api_keys
from serving.gateway.standalone.api_keys import KeyVerifier
from serving.http.errors import EngineUnavailable, InvalidApiKey, PermissionDenied

NOBODY = {"key_id": "", "scopes": ["admin"], "requests_per_minute": None, "concurrent_requests": None}
SOMEBODY = NOBODY | {"key_id": "key_a", "scopes": ["inference"], "requests_per_minute": 5}


class Service:
    """A stand-in for the service: answers with `status` and `body`, unless it hangs."""

    def __init__(self) -> None:
        self.asked: list[str | None] = []
        self.status, self.body = 200, json.dumps(SOMEBODY).encode()
        self.goes_on = Event()
        self.goes_on.set()

    def says(self, status: int, body: bytes) -> None:
        self.status, self.body = status, body


@pytest.fixture
def service() -> Iterator[tuple[Service, KeyVerifier]]:
    stand_in = Service()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            stand_in.asked.append(self.headers["Authorization"])
            stand_in.goes_on.wait(20)
            self.send_response(stand_in.status)
            self.end_headers()
            self.wfile.write(stand_in.body)

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        keys = KeyVerifier(f"http://127.0.0.1:{server.server_port}")
        yield stand_in, keys
        stand_in.goes_on.set()
        keys.threads.shutdown()
        server.shutdown()


def sender(token: str = "ts_a", **further: Any) -> ClientIdentity:
    return ClientIdentity(f"Bearer {token}".encode(), b"127.0.0.1:8000", "127.0.0.1", **further)


def test_those_who_ask_together_cause_one_look_up(service: tuple[Service, KeyVerifier]) -> None:
    stand_in, keys = service

    async def ask() -> list[Any]:
        return await asyncio.gather(*(keys(sender()) for _ in range(30)))

    callers = asyncio.run(ask())
    assert {(caller.key_id, caller.requests_per_minute) for caller in callers} == {("key_a", 5)}
    assert stand_in.asked == ["Bearer ts_a"]


@pytest.mark.parametrize(
    "answer", [(500, b"x"), (200, b"<html>"), (401, b"<html>"), (200, b"{}"), (404, b"")]
)
def test_what_else_answers_in_the_services_place_unseats_no_key(
    service: tuple[Service, KeyVerifier], monkeypatch: pytest.MonkeyPatch, answer: tuple[int, bytes]
) -> None:
    stand_in, keys = service
    asyncio.run(keys(sender()))
    monkeypatch.setattr(api_keys, "KEPT_SECONDS", 0.0)
    stand_in.says(*answer)
    assert asyncio.run(keys(sender())).key_id == "key_a"
    with pytest.raises(EngineUnavailable):
        asyncio.run(keys(sender("ts_unknown")))


def test_a_service_that_hangs_keeps_a_known_key_waiting_for_a_moment_only(
    service: tuple[Service, KeyVerifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in, keys = service
    asyncio.run(keys(sender()))
    monkeypatch.setattr(api_keys, "KEPT_SECONDS", 0.0)
    monkeypatch.setattr(api_keys, "PATIENCE_SECONDS", 0.1)
    stand_in.goes_on.clear()

    async def ask() -> float:
        began = time.monotonic()
        callers = await asyncio.gather(*(keys(sender()) for _ in range(20)))
        assert {caller.key_id for caller in callers} == {"key_a"}
        waited = time.monotonic() - began
        stand_in.goes_on.set()
        return waited

    assert asyncio.run(ask()) < api_keys.API_TIMEOUT_SECONDS
    assert len(stand_in.asked) == 2


def test_a_revoked_key_is_refused_once_it_is_looked_up_again(
    service: tuple[Service, KeyVerifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in, keys = service
    asyncio.run(keys(sender()))
    stand_in.says(401, b'{"error": {"message": "revoked"}}')
    assert asyncio.run(keys(sender())).key_id == "key_a"
    monkeypatch.setattr(api_keys, "KEPT_SECONDS", 0.0)
    for _ in range(2):
        with pytest.raises(InvalidApiKey, match="revoked"):
            asyncio.run(keys(sender()))
    assert keys.keys == {}


def test_refused_tokens_are_kept_to_a_number_and_push_no_key_out(
    service: tuple[Service, KeyVerifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in, keys = service
    monkeypatch.setattr(api_keys, "MOST_REFUSALS", 5)
    asyncio.run(keys(sender()))
    stand_in.says(401, b'{"error": {"message": "unknown"}}')
    for number in range(12):
        with pytest.raises(InvalidApiKey):
            asyncio.run(keys(sender(f"ts_{number}")))
    assert len(keys.refusals) <= 5 and len(keys.keys) == 1


@pytest.mark.parametrize("token", ["x" * 201, "ts_\x00", "ts_é"])
def test_what_can_be_no_key_is_refused_unasked(service: tuple[Service, KeyVerifier], token: str) -> None:
    stand_in, keys = service
    with pytest.raises(InvalidApiKey, match="printable"):
        asyncio.run(keys(ClientIdentity(b"Bearer " + token.encode("latin-1"), b"localhost", "127.0.0.1")))
    assert stand_in.asked == []


def test_without_keys_only_this_machine_is_served_and_nobody_behind_a_proxy(
    service: tuple[Service, KeyVerifier],
) -> None:
    stand_in, keys = service
    stand_in.says(200, json.dumps(NOBODY).encode())
    assert asyncio.run(keys(sender())).key_id == ""
    for other in (
        sender(forwarded=True),
        ClientIdentity(None, b"evil.example", "127.0.0.1"),
        ClientIdentity(None, b"x", "10.0.0.7"),
    ):
        with pytest.raises(PermissionDenied):
            asyncio.run(keys(other))


def test_a_key_without_the_scope_is_refused(service: tuple[Service, KeyVerifier]) -> None:
    stand_in, keys = service
    stand_in.says(200, json.dumps(SOMEBODY | {"scopes": ["read"]}).encode())
    with pytest.raises(PermissionDenied, match="inference"):
        asyncio.run(keys(sender()))
