"""The gateway inside another application, its OpenAPI, and its routes from the service's API."""

import asyncio
import json
import time
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

from serving.gateway.gateway import ClientIdentity, Gateway, GatewayRequest
from serving.gateway.mounted import openapi
from serving.gateway.mounted.asgi import AsgiGateway
from serving.gateway.rate_limits import AuthorizedClient
from serving.gateway.routes import Route, StaticRoutes, Target, parse_route
from serving.gateway.standalone.api_routes import ApiRoutes
from serving.http.errors import ConcurrencyLimitExceeded, EngineUnavailable, PermissionDenied
from tests.integration.serving.conftest import Server, wait_for
from tests.integration.serving.engine_stand_in import FakeEngine
from tests.services import free_port

ASKED = b'{"model": "slow", "stream": true}'


def mounted(gateway: Gateway) -> FastAPI:
    application = AsgiGateway(gateway)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await application.aclose()

    app = FastAPI(lifespan=lifespan)
    app.get("/v1/files")(lambda: {"files": []})
    app.mount("/v1", application)
    return app


def test_a_mounted_gateway_answers_below_v1_beside_other_routes(engine: Server) -> None:
    routes = StaticRoutes(
        [parse_route({"name": "starter", "base_url": engine.url, "upstream_model": "base"})]
    )
    with TestClient(mounted(Gateway(routes))) as client:
        assert client.get("/v1/files").json() == {"files": []}
        assert client.get("/v1/models").json()["data"][0]["id"] == "starter"
        body = {"model": "starter", "messages": [{"role": "user", "content": "hello"}], "temperature": 0}
        answer = client.post("/v1/chat/completions", json=body)
        assert answer.json()["choices"][0]["message"]["content"].startswith("하나")
        assert client.get("/v1/nothing").json()["error"]["code"] == "unknown_url"


def test_a_refusal_of_the_application_is_openais_error() -> None:
    async def authorize(sender: ClientIdentity) -> AuthorizedClient:
        if sender.token() != "right":
            raise PermissionDenied("This key may not generate.")
        return AuthorizedClient()

    with TestClient(mounted(Gateway(StaticRoutes([]), authorize))) as client:
        refused = client.get("/v1/models", headers={"Authorization": "Bearer wrong"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
        assert client.get("/v1/models", headers={"Authorization": "Bearer right"}).status_code == 200


class SleepingRoutes(StaticRoutes):
    """A deployment that wakes up at this address, or never."""

    def __init__(self, address: str) -> None:
        asleep = Target("deployment_plain", "", "plain")
        super().__init__([Route("sleeper", (asleep,), datetime(2026, 11, 26, tzinfo=UTC))])
        self.address = address
        self.told: set[str] = set()

    async def wake(self, target: Target) -> Target:
        await asyncio.sleep(0.2)
        if not self.address:
            raise EngineUnavailable("The deployment 'sleeper' is still starting.", 30)
        return replace(target, base_url=self.address)

    async def used(self, deployment_ids: Collection[str]) -> None:
        self.told |= set(deployment_ids)


def test_a_request_waits_for_a_sleeping_deployment_and_its_use_is_told() -> None:
    stand_in = FakeEngine()
    routes = SleepingRoutes(stand_in.url)
    with TestClient(mounted(Gateway(routes))) as client:
        assert client.post("/v1/chat/completions", json={"model": "sleeper"}).status_code == 200
    stand_in.close()
    assert routes.told == {"deployment_plain"}


def test_a_deployment_that_does_not_wake_in_time_is_a_503_that_says_when_to_come_back() -> None:
    with TestClient(mounted(Gateway(SleepingRoutes("")))) as client:
        refused = client.post("/v1/chat/completions", json={"model": "sleeper"})
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "30")


def examples() -> list[tuple[str, Any]]:
    contents = [
        (path, item["post"]["requestBody"]["content"]["application/json"])
        for path, item in openapi.paths().items()
        if "post" in item
    ]
    bodies = [(path, content["examples"]) for path, content in contents if "examples" in content]
    return [(path, example["value"]) for path, named in bodies for example in named.values()]


@pytest.mark.parametrize(("path", "body"), examples())
def test_the_examples_of_the_documentation_work_as_they_stand(gateway: Server, path: str, body: Any) -> None:
    status, answer = gateway.post(path, body)
    assert status == 200
    assert "choices" in answer or "output" in answer


def test_every_reference_of_the_documentation_resolves() -> None:
    text = json.dumps(openapi.paths()) + json.dumps(openapi.components())
    named = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert named == named & set(openapi.components()["schemas"])


@pytest.fixture
def api() -> Iterator[tuple[str, list[Any]]]:
    """A stand-in for the service: its routes, served for as long as the list holds any."""
    rows: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            allowed = self.headers["Authorization"] == "Bearer key" and self.path == "/api/v1/routes"
            page = {"items": rows, "next": None}
            self.send_response(200 if allowed and rows else 500)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(page).encode())

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", rows
        server.shutdown()


def listed(name: str) -> dict[str, Any]:
    address = "http://127.0.0.1:9"
    target = {
        "deployment_id": f"deployment_{name}",
        "base_url": address,
        "upstream_model": name,
        "share": 1.0,
    }
    return {"name": name, "targets": [target], "created_at": "2026-11-23T10:00:00+00:00"}


def test_routes_follow_the_api_and_outlive_it(api: tuple[str, list[Any]]) -> None:
    url, rows = api
    rows += [listed("one"), listed("two")]
    routes = ApiRoutes(url, "key")
    with TestClient(mounted(Gateway(routes))) as client:

        def names() -> set[str]:
            return {model["id"] for model in client.get("/v1/models").json()["data"]}

        assert names() == {"one", "two"}
        rows.pop()
        wait_for(lambda: names() == {"one"})
        rows.clear()
        time.sleep(1.1)
        assert names() == {"one"}
    target = Target("deployment_one", "http://127.0.0.1:9", "one")
    assert routes.routes["one"] == Route("one", (target,), routes.routes["one"].created_at)


class FaultyClient:
    """A client's side with a bug, which the first chunk of a stream meets."""

    job = None

    def __init__(self) -> None:
        self.ended: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def begin(self, status: int, headers: Any, chunk: bytes) -> None:
        raise RuntimeError("a bug")

    def finish(self, chunk: bytes) -> None:
        self.ended.set_result(chunk)


def test_a_bug_of_ours_ends_the_answer_instead_of_keeping_the_client_waiting() -> None:
    stand_in = FakeEngine()

    async def ask() -> bytes:
        gateway = Gateway(StaticRoutes([parse_route({"name": "slow", "base_url": stand_in.url})]))
        client: Any = FaultyClient()
        await gateway.admit(ClientIdentity(None, b"x", "127.0.0.1"))
        headers = {b"host": b"x"}
        gateway.handle(GatewayRequest("POST", "/v1/chat/completions", headers, "127.0.0.1", ASKED), client)
        async with asyncio.timeout(10):
            told = await client.ended
        await gateway.aclose()
        return told

    assert b"engine_disconnected" in asyncio.run(ask())
    stand_in.close()


class StaleRoutes(StaticRoutes):
    """Routes that have to be looked up again at each request, as those of the service once a second."""

    def fresh(self) -> bool:
        return False


def test_a_request_that_is_refused_while_its_engine_is_left_alone_is_counted_once() -> None:
    logged: list[Any] = []

    async def authorize(sender: ClientIdentity) -> AuthorizedClient:
        return AuthorizedClient("key_a", concurrent_requests=1)

    routes = StaleRoutes([parse_route({"name": "gone", "base_url": f"http://127.0.0.1:{free_port()}"})])
    gateway = Gateway(routes, authorize, log=logged.extend)
    with TestClient(mounted(gateway)) as client:
        answers = [client.post("/v1/chat/completions", json={"model": "gone"}) for _ in range(8)]
    assert {answer.status_code for answer in answers} == {503}
    assert "left alone" in answers[-1].json()["error"]["message"]
    assert [exchange.status for exchange in logged] == [503] * 8
    gateway.rate_limits.enter(AuthorizedClient("key_a", concurrent_requests=1))
    with pytest.raises(ConcurrencyLimitExceeded):
        gateway.rate_limits.enter(AuthorizedClient("key_a", concurrent_requests=1))
