"""Gateway behavior when engines and clients fail."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI

from tests.integration.serving.conftest import (
    ENVIRONMENT,
    WAIT_SECONDS,
    Server,
    gateway_over,
    one_engine,
    serving,
    wait_for,
)
from tests.integration.serving.fake_engine import FakeEngine

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
CHAT = "/v1/chat/completions"
MODELS = ["busy", "flaky", "dead", "thinking", "endless", "cut", "no-done", "abort-after-done"]
MODELS += ["error-mid-stream", "error-first", "slow", "held", "cut-plain"]


@pytest.fixture(scope="module")
def gateway(fake_engine: FakeEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    routes = [{"name": name, "base_url": fake_engine.url} for name in MODELS]
    routes += [{"name": "other-name", "base_url": fake_engine.url, "upstream_model": "slow"}]
    with gateway_over(routes, tmp_path_factory.mktemp("gateway")) as server:
        yield server


def post_raw(gateway: Server, body: dict[str, Any]) -> tuple[int, bytes]:
    """Return the status and bytes of a response."""
    response = httpx2.post(gateway.url + CHAT, json=body, timeout=WAIT_SECONDS)
    return response.status_code, response.content


def disconnect(gateway: Server, fake_engine: FakeEngine, model: str, after_bytes: int) -> None:
    """Disconnect once the engine has the request and some bytes were read, and wait for its end there."""
    host, port = gateway.url.removeprefix("http://").split(":")
    body = json.dumps({"model": model, "stream": True}).encode()
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        wait_for(lambda: fake_engine.open_counts[model] == 1)
        if after_bytes:
            assert connection.recv(after_bytes)
    wait_for(lambda: fake_engine.open_counts[model] == 0)


def test_a_stream_of_a_killed_engine_ends_with_an_error_and_without_done(tiny: Path, tmp_path: Path) -> None:
    with one_engine(tiny, tmp_path) as engine:
        routes = [{"name": "base", "base_url": engine.url}]
        with (
            gateway_over(routes, tmp_path) as gateway,
            OpenAI(base_url=f"{gateway.url}/v1", api_key="x") as sdk,
        ):
            stream = sdk.completions.create(
                model="base", prompt="하나", max_tokens=8000, stream=True, extra_body={"ignore_eos": True}
            )
            next(iter(stream))
            os.kill(engine.process.pid, signal.SIGKILL)
            with pytest.raises(openai.APIError, match="closed the connection"):
                list(stream)
            assert gateway.post("/v1/completions", {"model": "base", "prompt": "x"})[0] == 503


def test_a_stream_cut_within_an_event_ends_with_a_readable_error(gateway: Server) -> None:
    status, body = post_raw(gateway, {"model": "cut", "stream": True})
    events = [line for line in body.split(b"\n") if line]
    assert status == 200
    assert [json.loads(line.removeprefix(b"data: ")).keys() for line in events] == [{"choices"}, {"error"}]
    assert b"[DONE]" not in body


def test_a_stream_without_done_ends_with_an_error(gateway: Server) -> None:
    body = post_raw(gateway, {"model": "no-done", "stream": True})[1]
    assert json.loads(body.split(b"data: ")[-1])["error"]["code"] == "engine_disconnected"


def test_a_connection_lost_after_done_does_not_matter(gateway: Server) -> None:
    body = post_raw(gateway, {"model": "abort-after-done", "stream": True})[1]
    assert body.endswith(b"data: [DONE]\n\n")
    assert 'requests_total{model="abort-after-done",status="200"} 1.0' in gateway.get("/metrics")[1]


def test_an_error_event_of_the_engine_ends_the_stream_without_done(gateway: Server) -> None:
    body = post_raw(gateway, {"model": "error-mid-stream", "stream": True})[1]
    assert body.endswith(b'{"error": {"message": "EngineCore encountered an issue."}}\n\n')
    assert (body.count(b"data: "), b"[DONE]" in body) == (2, False)


def test_a_stream_that_starts_with_an_error_is_retried_once(gateway: Server, fake_engine: FakeEngine) -> None:
    assert gateway.post(CHAT, {"model": "error-first", "stream": True})[0] == 503
    assert fake_engine.request_counts["error-first"] == 2


def test_a_stream_is_forwarded_as_it_arrives_and_unchanged(gateway: Server, fake_engine: FakeEngine) -> None:
    body = {"model": "held", "stream": True}
    with httpx2.stream("POST", gateway.url + CHAT, json=body, timeout=WAIT_SECONDS) as response:
        chunks = response.iter_raw()
        first = next(chunks)
        # The engine sends the rest only now.
        fake_engine.released.set()
        rest = b"".join(chunks)
    assert (first + rest).count(b'"word "') == 10
    assert rest.endswith(b"data: [DONE]\n\n")


def test_a_client_that_disconnects_stops_the_stream_at_the_engine(
    gateway: Server, fake_engine: FakeEngine
) -> None:
    disconnect(gateway, fake_engine, "endless", 500)
    assert fake_engine.request_counts["endless"] == 1


def test_a_client_that_disconnects_before_the_first_byte_cancels_the_request(
    gateway: Server, fake_engine: FakeEngine
) -> None:
    disconnect(gateway, fake_engine, "thinking", 0)
    assert fake_engine.request_counts["thinking"] == 1


def test_a_connection_lost_before_the_first_byte_is_retried_once(
    gateway: Server, fake_engine: FakeEngine
) -> None:
    assert post_raw(gateway, {"model": "flaky"}) == (200, b'{"fine": true}')
    assert fake_engine.request_counts["flaky"] == 2


def test_a_second_lost_connection_is_an_error(gateway: Server, fake_engine: FakeEngine) -> None:
    status, body = gateway.post(CHAT, {"model": "dead"})
    assert (status, body["error"]["code"]) == (503, "engine_unavailable")
    assert fake_engine.request_counts["dead"] == 2


def test_an_incomplete_response_is_a_502_and_not_retried(gateway: Server, fake_engine: FakeEngine) -> None:
    status, body = gateway.post(CHAT, {"model": "cut-plain"})
    assert (status, body["error"]["code"]) == (502, "engine_disconnected")
    assert fake_engine.request_counts["cut-plain"] == 1


def test_an_error_of_the_engine_is_forwarded_with_its_status_and_retry_after(gateway: Server) -> None:
    with (
        OpenAI(base_url=f"{gateway.url}/v1", api_key="x", max_retries=0) as sdk,
        pytest.raises(openai.APIError) as at,
    ):
        sdk.chat.completions.create(model="busy", messages=HELLO)
    assert isinstance(at.value, openai.RateLimitError)
    assert at.value.code == "full"
    assert at.value.response.headers["retry-after"] == "7"


def test_the_engine_gets_its_own_name_and_neither_the_key_nor_an_unsafe_id(
    gateway: Server, fake_engine: FakeEngine
) -> None:
    headers = {"Authorization": "Bearer secret", "X-Request-Id": "a b"}
    body = b'{"model": "other-name", "seed": 3, "user": "\\ud55c"}'
    response = httpx2.post(gateway.url + CHAT, content=body, headers=headers, timeout=WAIT_SECONDS)
    request_id = response.headers["x-request-id"]
    assert fake_engine.bodies[-1] == {"model": "slow", "seed": 3, "user": "한"}
    assert "authorization" not in fake_engine.headers[-1]
    assert fake_engine.headers[-1]["x-request-id"] == request_id
    assert request_id.startswith("req_")


@pytest.mark.parametrize(
    ("body", "param"),
    [(b"{", None), (b"[]", None), (b'{"model": 5}', "model"), (b"\xff", None), (b"[" * 100_000, None)],
)
def test_an_invalid_body_is_rejected(gateway: Server, body: bytes, param: str | None) -> None:
    status, response = gateway.post(CHAT, body)
    assert (status, response["error"]["param"]) == (400, param)


def test_a_body_over_eight_mebibytes_is_rejected(gateway: Server) -> None:
    size = 8 * 1024 * 1024 + 1
    host, port = gateway.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n".encode()
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    ("path", "status"), [("/v1/nothing", 404), ("/v1/models/nobody", 404), ("/v1/completions", 405)]
)
def test_a_wrong_url_gets_openais_error(gateway: Server, path: str, status: int) -> None:
    found, body = gateway.get(path)
    assert (found, set(body["error"])) == (status, {"message", "type", "param", "code"})


def test_only_names_with_a_route_become_metric_labels(gateway: Server) -> None:
    assert gateway.post(CHAT, {"model": "invented-by-a-client"})[0] == 404
    text = gateway.get("/metrics")[1]
    assert 'tunesmith_gateway_requests_total{model="none",status="404"}' in text
    assert "invented-by-a-client" not in text
    assert 'tunesmith_gateway_requests_total{model="cut",status="502"} 1.0' in text
    assert 'tunesmith_gateway_requests_total{model="endless",status="499"} 1.0' in text


def test_a_configured_key_is_required(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENVIRONMENT, "GATEWAY_KEY", "right")
    (tmp_path / "routes.json").write_text("[]")
    arguments = ["--routes", str(tmp_path / "routes.json"), "--client-key-env", "GATEWAY_KEY"]
    with serving(tmp_path / "log", "serving.gateway", *arguments) as server:
        server.wait_until_ready()
        for key, wanted in (("wrong", 401), ("right", 200)):
            headers = {"Authorization": f"Bearer {key}"}
            assert server.call("GET", "/v1/models", headers=headers)[0] == wanted


def test_a_public_address_without_a_key_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "routes.json").write_text("[]")
    command = [
        sys.executable,
        "-m",
        "serving.gateway",
        "--routes",
        str(tmp_path / "routes.json"),
        "--host",
        "0.0.0.0",
    ]
    ended = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=WAIT_SECONDS)
    assert ended.returncode == 1
    assert "--client-key-env" in ended.stderr


def test_importing_the_gateway_loads_no_ml_package() -> None:
    program = (
        "import sys, serving.gateway.__main__, serving.gateway.mounted.asgi, serving.gateway.mounted.openapi;"
        "print({'torch', 'transformers', 'peft', 'fastapi', 'pydantic'} & set(sys.modules))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=WAIT_SECONDS
    )
    assert loaded.stdout.strip() == "set()"
