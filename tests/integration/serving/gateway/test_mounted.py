"""The gateway mounted in another application, its OpenAPI document, and routes from the service's API."""

import asyncio
import json
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from serving.gateway.downstream import ClientIdentity, GatewayRequest
from serving.gateway.gateway import Gateway
from serving.gateway.mounted import openapi
from serving.gateway.mounted.asgi import AsgiGateway
from serving.gateway.rate_limits import AuthorizedClient
from serving.gateway.routes import Route, StaticRoutingTable, Target, parse_route
from serving.gateway.standalone.api_routes import ApiRoutingTable
from serving.http.errors import ConcurrencyLimitExceeded, EngineUnavailable, PermissionDenied
from tests.integration.serving.conftest import Server
from tests.integration.serving.fake_engine import FakeEngine
from tests.services import free_port

REQUEST = b'{"model": "slow", "stream": true}'


def mount(gateway: Gateway) -> FastAPI:
    application = AsgiGateway(gateway)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await application.aclose()

    app = FastAPI(lifespan=lifespan)
    app.get("/v1/files")(lambda: {"files": []})
    app.mount("/v1", application)
    return app


def test_a_mounted_gateway_serves_v1_next_to_other_routes(engine: Server) -> None:
    routes = StaticRoutingTable(
        [parse_route({"name": "starter", "base_url": engine.url, "upstream_model": "base"})]
    )
    with TestClient(mount(Gateway(routes))) as client:
        assert client.get("/v1/files").json() == {"files": []}
        assert client.get("/v1/models").json()["data"][0]["id"] == "starter"
        body = {"model": "starter", "messages": [{"role": "user", "content": "hello"}], "temperature": 0}
        answer = client.post("/v1/chat/completions", json=body)
        assert answer.json()["choices"][0]["message"]["content"].startswith("하나")
        assert client.get("/v1/nothing").json()["error"]["code"] == "unknown_url"


def test_an_authorization_error_has_openais_shape() -> None:
    async def authorize(identity: ClientIdentity) -> AuthorizedClient:
        if identity.token() != "right":
            raise PermissionDenied("This key may not generate.")
        return AuthorizedClient()

    with TestClient(mount(Gateway(StaticRoutingTable([]), authorize))) as client:
        rejected = client.get("/v1/models", headers={"Authorization": "Bearer wrong"})
        assert (rejected.status_code, rejected.json()["error"]["code"]) == (403, "forbidden")
        assert client.get("/v1/models", headers={"Authorization": "Bearer right"}).status_code == 200


class SleepingRoutingTable(StaticRoutingTable):
    """A sleeping deployment that wakes at this address, or never if it is empty."""

    def __init__(self, address: str) -> None:
        asleep = Target("deployment_plain", "", "plain")
        super().__init__([Route("sleeper", (asleep,), datetime(2026, 11, 26, tzinfo=UTC))])
        self.address = address
        self.used: set[str] = set()

    async def wake(self, target: Target) -> Target:
        await asyncio.sleep(0.2)
        if not self.address:
            raise EngineUnavailable("The deployment 'sleeper' is still starting.", 30)
        return replace(target, base_url=self.address)

    async def record_use(self, deployment_ids: Collection[str]) -> None:
        self.used |= set(deployment_ids)


def test_a_request_waits_for_a_sleeping_deployment_and_its_use_is_reported() -> None:
    fake_engine = FakeEngine()
    routes = SleepingRoutingTable(fake_engine.url)
    with TestClient(mount(Gateway(routes))) as client:
        assert client.post("/v1/chat/completions", json={"model": "sleeper"}).status_code == 200
    fake_engine.close()
    assert routes.used == {"deployment_plain"}


def test_a_deployment_that_does_not_wake_in_time_is_a_503_with_retry_after() -> None:
    with TestClient(mount(Gateway(SleepingRoutingTable("")))) as client:
        rejected = client.post("/v1/chat/completions", json={"model": "sleeper"})
    assert (rejected.status_code, rejected.headers["retry-after"]) == (503, "30")


def examples() -> list[tuple[str, Any]]:
    contents = [
        (path, item["post"]["requestBody"]["content"]["application/json"])
        for path, item in openapi.paths().items()
        if "post" in item
    ]
    bodies = [(path, content["examples"]) for path, content in contents if "examples" in content]
    return [(path, example["value"]) for path, named in bodies for example in named.values()]


@pytest.mark.parametrize(("path", "body"), examples())
def test_the_documented_examples_work_unchanged(gateway: Server, path: str, body: Any) -> None:
    status, answer = gateway.post(path, body)
    assert status == 200
    assert "choices" in answer or "output" in answer


def test_every_reference_of_the_openapi_document_resolves() -> None:
    text = json.dumps(openapi.paths()) + json.dumps(openapi.components())
    named = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert named == named & set(openapi.components()["schemas"])


@pytest.fixture
def api() -> Iterator[tuple[str, list[Any]]]:
    """Yield a fake of the service's API: it serves these routes, and fails while the list is empty."""
    rows: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            allowed = self.headers["Authorization"] == "Bearer key" and self.path == "/api/v1/routes"
            page = {"items": rows, "next": None}
            self.send_response(200 if allowed and rows else 500)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(page).encode())

        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>a login page</html>")

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", rows
        server.shutdown()


def route_row(name: str) -> dict[str, Any]:
    address = "http://127.0.0.1:9"
    target = {
        "deployment_id": f"deployment_{name}",
        "base_url": address,
        "upstream_model": name,
        "share": 1.0,
    }
    return {"name": name, "targets": [target], "created_at": "2026-11-23T10:00:00+00:00"}


def test_routes_follow_the_api_and_stay_when_it_fails(
    api: tuple[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.gateway.routes.REFRESH_SECONDS", 0.0)
    url, rows = api
    rows += [route_row("one"), route_row("two")]
    routes = ApiRoutingTable(url, "key")
    with TestClient(mount(Gateway(routes))) as client:

        def names() -> set[str]:
            return {model["id"] for model in client.get("/v1/models").json()["data"]}

        assert names() == {"one", "two"}
        rows.pop()
        assert names() == {"one"}
        rows.clear()
        assert names() == {"one"}
    target = Target("deployment_one", "http://127.0.0.1:9", "one")
    assert routes.routes["one"] == Route("one", (target,), routes.routes["one"].created_at)


def test_an_engine_is_unavailable_while_something_else_responds_in_the_place_of_the_api(
    api: tuple[str, list[Any]],
) -> None:
    asleep = Target("deployment_one", "", "one")
    with pytest.raises(EngineUnavailable, match="asleep"):
        asyncio.run(ApiRoutingTable(api[0], "key").wake(asleep))


class FaultyDownstream:
    """A downstream with a bug that the first chunk of a stream triggers."""

    in_flight = None

    def __init__(self) -> None:
        self.ended: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def start(self, status: int, headers: Any, chunk: bytes) -> None:
        raise RuntimeError("a bug")

    def finish(self, chunk: bytes) -> None:
        self.ended.set_result(chunk)


def test_a_bug_in_the_gateway_ends_the_response() -> None:
    fake_engine = FakeEngine()

    async def send_request() -> bytes:
        gateway = Gateway(StaticRoutingTable([parse_route({"name": "slow", "base_url": fake_engine.url})]))
        client: Any = FaultyDownstream()
        await gateway.authorize(ClientIdentity(None, b"x", "127.0.0.1"))
        headers = {b"host": b"x"}
        gateway.handle(GatewayRequest("POST", "/v1/chat/completions", headers, "127.0.0.1", REQUEST), client)
        async with asyncio.timeout(60):
            last: bytes = await client.ended
        await gateway.aclose()
        return last

    assert b"engine_disconnected" in asyncio.run(send_request())
    fake_engine.close()


class AlwaysStaleRoutingTable(StaticRoutingTable):
    """Routes that need a refresh at each request, as those of the service do once a second."""

    def is_fresh(self) -> bool:
        return False


def test_a_request_rejected_by_an_open_circuit_is_counted_once() -> None:
    logged: list[Any] = []

    async def authorize(identity: ClientIdentity) -> AuthorizedClient:
        return AuthorizedClient("key_a", concurrent_requests=1)

    routes = AlwaysStaleRoutingTable(
        [parse_route({"name": "gone", "base_url": f"http://127.0.0.1:{free_port()}"})]
    )
    gateway = Gateway(routes, authorize, log=logged.extend)
    with TestClient(mount(gateway)) as client:
        responses = [client.post("/v1/chat/completions", json={"model": "gone"}) for _ in range(8)]
    assert {response.status_code for response in responses} == {503}
    assert "receives no requests" in responses[-1].json()["error"]["message"]
    assert [context.status for context in logged] == [503] * 8
    gateway.rate_limits.acquire(AuthorizedClient("key_a", concurrent_requests=1))
    with pytest.raises(ConcurrencyLimitExceeded):
        gateway.rate_limits.acquire(AuthorizedClient("key_a", concurrent_requests=1))
