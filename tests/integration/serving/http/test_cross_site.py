"""Web pages of other origins, proxies and foreign host names, against servers that need no key.

Method: the headers that browsers and proxies send, over a socket, to the API, the standalone gateway and an
engine.
"""

import asyncio
import json
from pathlib import Path
from typing import Any, NoReturn

import aiohttp
import pytest
from aiohttp import web

from serving.engines.decoding.loop import GenerationLoop
from serving.engines.openai_server.server import make_app
from tests.integration.serving.conftest import ENVIRONMENT, READY_SECONDS, Server, serving
from tests.integration.serving.fake_engine import FakeEngine
from tests.integration.serving.http.conftest import ALLOWED_ORIGIN, api_server
from tests.integration.serving.http.raw_client import Response, exchange, parse, send

CHAT = "/v1/chat/completions"
BODY = b'{"model": "plain"}'
EVIL = "Origin: http://evil.example"
# The headers of a request that a page of another origin makes its visitor's browser send.
FOREIGN = {
    "a fetch of another site": [EVIL, "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors"],
    "an old browser": [EVIL],
    "a form in a sandboxed frame": ["Origin: null"],
    "a local file": ["Origin: file://"],
    "another server on the same machine": ["Origin: http://localhost:3000", "Sec-Fetch-Site: same-site"],
    "another port, in an old browser": ["Origin: http://127.0.0.1:3000"],
    "a name that begins like ours": ["Origin: http://127.0.0.1.evil.example"],
    "a redirect of another site": ["Sec-Fetch-Site: cross-site"],
    "an image": ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: image"],
    "a frame": ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: iframe"],
}
OWN = {
    "a program": [],
    "Swagger UI": ["Origin: http://127.0.0.1", "Sec-Fetch-Site: same-origin"],
    "Swagger UI in an old browser": ["Origin: http://127.0.0.1:80"],
    "Swagger UI behind a proxy that changes the Host header": [
        "Origin: https://tunes.example",
        "Sec-Fetch-Site: same-origin",
    ],
    "the address bar": ["Sec-Fetch-Site: none", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"],
}


@pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN)
def test_a_page_of_another_origin_is_refused(
    edge: Server, fake_engine: FakeEngine, headers: list[str]
) -> None:
    before = sum(fake_engine.request_counts.values())
    for method, path in [("GET", "/v1/models"), ("POST", CHAT)]:
        response = send(edge, method, path, "Content-Type: text/plain", *headers, body=BODY)
        assert (response.status, code(response)) == (403, "cross_site_request")
    assert sum(fake_engine.request_counts.values()) == before


@pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN)
def test_a_page_of_another_origin_changes_nothing_in_the_api(api: Server, headers: list[str]) -> None:
    file = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n{}\r\n--x--\r\n'
    form = "Content-Type: multipart/form-data; boundary=x"
    requests = [
        send(api, "POST", "/api/v1/datasets", form, *headers, body=file),
        send(api, "POST", "/api/v1/deployments/deployment_x/wake", *headers),
        send(api, "DELETE", "/api/v1/keys/key_x", *headers),
        send(api, "GET", "/docs", *headers),
    ]
    assert {(response.status, code(response)) for response in requests} == {(403, "cross_site_request")}
    assert api.get("/api/v1/datasets")[1]["items"] == []


@pytest.mark.parametrize("headers", OWN.values(), ids=OWN)
def test_programs_and_our_own_pages_are_served(edge: Server, headers: list[str]) -> None:
    assert send(edge, "GET", "/v1/models", *headers).status == 200
    assert send(edge, "POST", CHAT, *headers, body=BODY).status == 200


def test_a_link_on_another_page_opens_the_documentation(api: Server) -> None:
    link = ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"]
    response = send(api, "GET", "/docs", *link)
    assert (response.status, response.headers["x-frame-options"]) == (200, "DENY")
    assert send(api, "POST", "/api/v1/jobs", *link).status == 403


@pytest.mark.parametrize(
    "header",
    ["Forwarded: for=10.0.0.9", "Via: 1.1 proxy", "X-Real-IP: 10.0.0.9"]
    + [f"X-Forwarded-{name}: 127.0.0.1" for name in ("For", "Host", "Proto", "Port", "Server")],
)
def test_a_proxy_before_a_server_without_keys_is_refused(edge: Server, header: str) -> None:
    assert send(edge, "GET", "/v1/models", header).status == 403
    assert send(edge, "GET", "/api/v1/jobs", header).status in (403, 404)


def test_a_name_that_a_page_bound_to_this_machine_is_refused(edge: Server) -> None:
    request = b"GET /v1/models HTTP/1.1\r\nHost: evil.example:8000\r\nConnection: close\r\n\r\n"
    assert parse(exchange(edge, request)).status == 403


def code(response: Response) -> str:
    found: str = json.loads(response.body)["error"]["code"]
    return found


def test_a_listed_origin_may_use_the_api_and_the_mounted_gateway(
    fake_engine: FakeEngine, tmp_path: Path
) -> None:
    with api_server(tmp_path, fake_engine, TUNESMITH_ALLOWED_ORIGINS=f'["{ALLOWED_ORIGIN}"]') as server:
        body = {"name": "me", "scopes": ["admin"], "lock_service": True}
        key = server.post("/api/v1/keys", body)[1]["key"]
        for path in (CHAT, "/api/v1/jobs"):
            check_cors(server, path, f"Authorization: Bearer {key}")


def test_a_listed_origin_may_use_the_standalone_gateway(
    fake_engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENVIRONMENT, "GATEWAY_KEY", "secret")
    (tmp_path / "routes.json").write_text(json.dumps([{"name": "plain", "base_url": fake_engine.url}]))
    arguments = ["--routes", str(tmp_path / "routes.json"), "--client-key-env", "GATEWAY_KEY"]
    arguments += ["--allow-origin", ALLOWED_ORIGIN]
    with serving(tmp_path / "log", "serving.gateway", *arguments) as server:
        server.wait_until_ready()
        check_cors(server, CHAT, "Authorization: Bearer secret")


def check_cors(server: Server, path: str, key: str) -> None:
    """Check the preflight, which browsers send without a key, then the request, with a key and without."""
    asked = ["Access-Control-Request-Method: POST", "Access-Control-Request-Headers: authorization,x-a"]
    listed = [f"Origin: {ALLOWED_ORIGIN}", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: cors"]
    preflight = send(server, "OPTIONS", path, *listed, *asked)
    assert (preflight.status, preflight.headers["access-control-allow-origin"]) == (200, ALLOWED_ORIGIN)
    assert preflight.headers["access-control-allow-headers"] == "authorization,x-a"
    assert "POST" in preflight.headers["access-control-allow-methods"]
    foreign = send(server, "OPTIONS", path, EVIL, *asked)
    assert foreign.status == 403 and "access-control-allow-origin" not in foreign.headers
    served, refused = send(server, "POST", path, *listed, key, body=BODY), send(server, "POST", path, *listed)
    assert (served.status, refused.status) in [(200, 401), (422, 401)]
    for response in (preflight, served, refused):
        assert response.headers["access-control-allow-origin"] == ALLOWED_ORIGIN
        assert response.headers["vary"] == "Origin"
        assert "access-control-allow-credentials" not in response.headers
    plain = send(server, "GET", "/v1/models", key)
    assert plain.headers["vary"] == "Origin" and "access-control-allow-origin" not in plain.headers


@pytest.mark.parametrize(
    "origin", ["*", "null", "chat.example", "https://chat.example/path", "https://*.example"]
)
def test_a_setting_that_is_not_an_origin_is_refused(origin: str, tmp_path: Path) -> None:
    routes = tmp_path / "routes.json"
    routes.write_text("[]")
    arguments = ["--routes", str(routes), "--allow-origin", origin]
    with serving(tmp_path / "log", "serving.gateway", *arguments) as server:
        assert server.process.wait(READY_SECONDS) == 2
    assert "is not an origin" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        *(({name: value}, 403) for name, value in [("Origin", "http://evil.example"), ("Origin", "null")]),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Host": "evil.example:8001"}, 403),
        ({"Host": "127.0.0.1:80@evil"}, 400),
        ({"Host": "engine-1:8001"}, 503),
        ({"Host": "10.0.0.7:8001"}, 503),
        ({"Content-Encoding": "zstd"}, 415),
        ({}, 503),
    ],
)
def test_an_engine_refuses_web_pages_and_foreign_names(headers: dict[str, str], status: int) -> None:
    """The engine's model is never loaded, so a request that passes the checks gets 503."""
    paths = ["/v1/unload_lora_adapter", "/v1/load_lora_adapter", CHAT, "/tokenize"]
    assert asyncio.run(post_to_engine(paths, headers)) == [status] * len(paths)


def load_nothing() -> NoReturn:
    raise AssertionError("the loop is not started")


async def post_to_engine(paths: list[str], headers: dict[str, str]) -> list[int]:
    load: Any = load_nothing
    loop: GenerationLoop = GenerationLoop(load, 1)
    runner = web.AppRunner(make_app(loop, "engine-1"), auto_decompress=False)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    address = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with aiohttp.ClientSession() as session:
        responses = [
            await session.post(address + path, data=BODY, headers=headers | {"Content-Type": "text/plain"})
            for path in paths
        ]
    await runner.cleanup()
    return [response.status for response in responses]
