"""What the gateway does when engines and clients misbehave."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.integration.serving.conftest import (
    ENVIRONMENT,
    Server,
    gateway_over,
    one_engine,
    serving,
    wait_for,
)
from tests.integration.serving.engine_stand_in import FakeEngine

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
CHAT = "/v1/chat/completions"
FAULTS = ["busy", "flaky", "dead", "thinking", "endless", "cut", "undone", "rude", "told", "told-first"]
FAULTS += ["slow", "cut-plain"]


@pytest.fixture(scope="module")
def front(stand_in: FakeEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    routes = [{"name": name, "base_url": stand_in.url} for name in FAULTS]
    routes += [{"name": "other-name", "base_url": stand_in.url, "upstream_model": "slow"}]
    with gateway_over(routes, tmp_path_factory.mktemp("front")) as server:
        yield server


def raw(front: Server, body: dict[str, Any]) -> tuple[int, bytes]:
    """Status and bytes of an answer."""
    request = urllib.request.Request(front.url + CHAT, json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.status, answer.read()


def leave(front: Server, model: str, after_bytes: int) -> None:
    """Ask, read so much, and hang up."""
    host, port = front.url.removeprefix("http://").split(":")
    body = json.dumps({"model": model, "stream": True}).encode()
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        time.sleep(0.2)
        if after_bytes:
            assert connection.recv(after_bytes)


def test_an_engine_killed_in_mid_stream_ends_with_an_error_and_no_done(tiny: Path, tmp_path: Path) -> None:
    with one_engine(tiny, tmp_path) as engine:
        routes = [{"name": "base", "base_url": engine.url}]
        with gateway_over(routes, tmp_path) as front, OpenAI(base_url=f"{front.url}/v1", api_key="x") as sdk:
            stream = sdk.completions.create(
                model="base", prompt="하나", max_tokens=8000, stream=True, extra_body={"ignore_eos": True}
            )
            next(iter(stream))
            os.kill(engine.process.pid, signal.SIGKILL)
            with pytest.raises(openai.APIError, match="broke off"):
                list(stream)
            assert front.post("/v1/completions", {"model": "base", "prompt": "x"})[0] == 503


def test_a_stream_cut_in_mid_event_ends_with_an_error_that_can_be_read(front: Server) -> None:
    status, body = raw(front, {"model": "cut", "stream": True})
    events = [line for line in body.split(b"\n") if line]
    assert status == 200
    assert [json.loads(line.removeprefix(b"data: ")).keys() for line in events] == [{"choices"}, {"error"}]
    assert b"[DONE]" not in body


def test_a_stream_that_ends_without_done_is_a_broken_one(front: Server) -> None:
    body = raw(front, {"model": "undone", "stream": True})[1]
    assert json.loads(body.split(b"data: ")[-1])["error"]["code"] == "engine_disconnected"


def test_a_stream_that_breaks_after_done_is_whole(front: Server) -> None:
    body = raw(front, {"model": "rude", "stream": True})[1]
    assert body.endswith(b"data: [DONE]\n\n")
    assert 'requests_total{model="rude",status="200"} 1.0' in front.get("/metrics")[1]


def test_an_error_that_the_engine_tells_in_mid_stream_is_the_end_without_done(front: Server) -> None:
    body = raw(front, {"model": "told", "stream": True})[1]
    assert body.endswith(b'{"error": {"message": "EngineCore encountered an issue."}}\n\n')
    assert (body.count(b"data: "), b"[DONE]" in body) == (2, False)


def test_a_stream_that_begins_with_an_error_is_no_answer_and_tried_once_more(
    front: Server, stand_in: FakeEngine
) -> None:
    assert front.post(CHAT, {"model": "told-first", "stream": True})[0] == 503
    assert stand_in.asked["told-first"] == 2


def test_a_stream_is_passed_as_it_comes_and_unchanged(front: Server) -> None:
    request = urllib.request.Request(front.url + CHAT, b'{"model": "slow", "stream": true}')
    begun = time.monotonic()
    with urllib.request.urlopen(request, timeout=20) as answer:
        first = answer.readline()
        first_after = time.monotonic() - begun
        rest = answer.read()
    assert first_after < 0.5 * (time.monotonic() - begun)
    assert (first + rest).count(b'"word "') == 10
    assert rest.endswith(b"data: [DONE]\n\n")


def test_a_client_that_leaves_closes_the_stream_at_the_engine(front: Server, stand_in: FakeEngine) -> None:
    leave(front, "endless", 500)
    wait_for(lambda: stand_in.asked["endless"] == 1 and stand_in.open["endless"] == 0)


def test_a_client_that_leaves_before_the_first_byte_closes_the_request(
    front: Server, stand_in: FakeEngine
) -> None:
    leave(front, "thinking", 0)
    wait_for(lambda: stand_in.asked["thinking"] == 1 and stand_in.open["thinking"] == 0)


def test_a_connection_lost_before_the_first_byte_is_tried_once_more(
    front: Server, stand_in: FakeEngine
) -> None:
    assert raw(front, {"model": "flaky"}) == (200, b'{"fine": true}')
    assert stand_in.asked["flaky"] == 2


def test_two_lost_connections_are_enough(front: Server, stand_in: FakeEngine) -> None:
    status, answer = front.post(CHAT, {"model": "dead"})
    assert (status, answer["error"]["code"]) == (503, "engine_unavailable")
    assert stand_in.asked["dead"] == 2


def test_a_plain_answer_that_breaks_off_is_a_502_and_not_tried_again(
    front: Server, stand_in: FakeEngine
) -> None:
    status, answer = front.post(CHAT, {"model": "cut-plain"})
    assert (status, answer["error"]["code"]) == (502, "engine_disconnected")
    assert stand_in.asked["cut-plain"] == 1


def test_an_error_of_the_engine_passes_with_its_status_and_retry_after(front: Server) -> None:
    with (
        OpenAI(base_url=f"{front.url}/v1", api_key="x", max_retries=0) as sdk,
        pytest.raises(openai.APIError) as at,
    ):
        sdk.chat.completions.create(model="busy", messages=HELLO)
    assert isinstance(at.value, openai.RateLimitError)
    assert at.value.code == "full"
    assert at.value.response.headers["retry-after"] == "7"


def test_the_engine_gets_its_own_name_and_neither_the_key_nor_an_unsafe_id(
    front: Server, stand_in: FakeEngine
) -> None:
    headers = {"Authorization": "Bearer secret", "X-Request-Id": "a b"}
    request = urllib.request.Request(
        front.url + CHAT, b'{"model": "other-name", "seed": 3, "x": "\\ud55c"}', headers
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        given = answer.headers["x-request-id"]
    assert stand_in.seen[-1] == {"model": "slow", "seed": 3, "x": "한"}
    assert "authorization" not in stand_in.headers[-1]
    assert stand_in.headers[-1]["x-request-id"] == given
    assert given.startswith("req_")


@pytest.mark.parametrize(
    ("body", "param"),
    [(b"{", None), (b"[]", None), (b'{"model": 5}', "model"), (b"\xff", None), (b"[" * 100_000, None)],
)
def test_a_body_that_is_not_a_request_is_refused(front: Server, body: bytes, param: str | None) -> None:
    status, answer = front.post(CHAT, body)
    assert (status, answer["error"]["param"]) == (400, param)


def test_a_body_over_eight_mebibytes_is_refused(front: Server) -> None:
    size = 8 * 1024 * 1024 + 1
    host, port = front.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    ("path", "status"), [("/v1/nothing", 404), ("/v1/models/nobody", 404), ("/v1/completions", 405)]
)
def test_a_wrong_url_gets_openais_error(front: Server, path: str, status: int) -> None:
    found, answer = front.get(path)
    assert (found, set(answer["error"])) == (status, {"message", "type", "param", "code"})


def test_metrics_count_by_known_names_only(front: Server) -> None:
    assert front.post(CHAT, {"model": "made-up-by-a-client"})[0] == 404
    text = front.get("/metrics")[1]
    assert 'tunesmith_gateway_requests_total{model="none",status="404"}' in text
    assert "made-up-by-a-client" not in text
    assert 'tunesmith_gateway_requests_total{model="cut",status="502"} 1.0' in text
    assert 'tunesmith_gateway_requests_total{model="endless",status="499"} 1.0' in text


def test_a_key_is_asked_for_when_one_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENVIRONMENT, "GATEWAY_KEY", "right")
    (tmp_path / "routes.json").write_text("[]")
    arguments = ["--routes", str(tmp_path / "routes.json"), "--client-key-env", "GATEWAY_KEY"]
    with serving(tmp_path / "log", "serving.gateway", *arguments) as server:
        server.wait_until_ready()
        for key, wanted in (("wrong", 401), ("right", 200)):
            headers = {"Authorization": f"Bearer {key}"}
            assert (
                server.call(urllib.request.Request(f"{server.url}/v1/models", headers=headers))[0] == wanted
            )


def test_an_open_address_without_a_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "routes.json").write_text("[]")
    command = [
        sys.executable,
        "-m",
        "serving.gateway",
        "--routes",
        tmp_path / "routes.json",
        "--host",
        "0.0.0.0",
    ]
    ended = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=20)
    assert ended.returncode == 1
    assert "--client-key-env" in ended.stderr


def test_importing_the_gateway_loads_no_ml_package() -> None:
    program = (
        "import sys, serving.gateway.__main__, serving.gateway.mounted.asgi, serving.gateway.mounted.openapi;"
        "print({'torch', 'transformers', 'peft', 'fastapi', 'pydantic'} & set(sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20)
    assert loaded.stdout.strip() == "set()"
