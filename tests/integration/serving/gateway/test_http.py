"""The standalone gateway's HTTP server and malformed, slow or hostile clients."""

import asyncio
import json
import socket
import time
from collections.abc import Iterator

import psutil
import pytest

from serving.gateway.gateway import Gateway
from serving.gateway.routes import StaticRoutingTable
from serving.gateway.standalone.connection import HEAD_TIMEOUT_SECONDS
from serving.gateway.standalone.server import GatewayServer, bind_socket
from tests.integration.serving.conftest import Server, gateway_over
from tests.integration.serving.fake_engine import FakeEngine

BODY = b'{"model": "slow", "stream": true}'
LINE = b"POST /v1/chat/completions HTTP/1.1\r\n"
HEAD = LINE + b"Host: x\r\n"
LENGTH = b"Content-Length: %d\r\n\r\n" % len(BODY)
MODELS = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def gateway(fake_engine: FakeEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    routes = [{"name": name, "base_url": fake_engine.url} for name in ("slow", "plain", "flood", "endless")]
    with gateway_over(routes, tmp_path_factory.mktemp("gateway")) as server:
        yield server


def connect(gateway: Server) -> socket.socket:
    host, port = gateway.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def exchange(gateway: Server, *parts: bytes, until: bytes = b"", pause_seconds: float = 0.02) -> bytes:
    """Return all bytes that arrive until the server closes, or until these bytes."""
    with connect(gateway) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(pause_seconds)
        response = b""
        while not (until and until in response):
            more = connection.recv(65536)
            if not more:
                break
            response += more
        return response


@pytest.mark.parametrize(
    "request_bytes",
    [
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        HEAD + b"Content-Length: 5\r\n" + LENGTH + BODY,
        HEAD + b"Content-Length: +5\r\n\r\nhello",
        HEAD + b"Content-Length: 5, 5\r\n\r\nhello",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n0\r\n\r\n",
        HEAD + b"X-A : b\r\n" + LENGTH + BODY,
        HEAD + b"X-A: a\r\n folded\r\n" + LENGTH + BODY,
        HEAD + b"X-A: a\0b\r\n" + LENGTH + BODY,
        HEAD + b"X-A: a\rContent-Length: 5\r\n" + LENGTH + BODY,
        HEAD + b"Host: y\r\n" + LENGTH + BODY,
        (HEAD + LENGTH).replace(b"\r\n", b"\n") + BODY,
        LINE + LENGTH + BODY,
        b"POST /v1/chat/completions\r\nHost: x\r\n" + LENGTH + BODY,
        HEAD.replace(b"HTTP/1.1", b"HTTP/0.9") + LENGTH + BODY,
        HEAD.replace(b"HTTP/1.1", b"HTTP/2.0") + LENGTH + BODY,
        LINE.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Connection: Upgrade\r\nUpgrade: h2c\r\n" + LENGTH + BODY,
        b"CONNECT engine:8000 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01 hello\r\n\r\n",
    ],
)
def test_an_ambiguous_request_is_rejected(gateway: Server, request_bytes: bytes) -> None:
    response = exchange(gateway, request_bytes)
    assert response.startswith(b"HTTP/1.1 400 ")
    assert response.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in response
    assert json.loads(response.partition(b"\r\n\r\n")[2])["error"]["code"] == "malformed_request"


@pytest.mark.parametrize(
    "headers",
    [
        [b"X-A: " + b"a" * 100_000 + b"\r\n"],
        [b"X-A: " + b"a" * 1000] * 100,
        [b"X-A: a\r\n" * 101],
        [b"X-A: " + b"a" * 30_000 + b"\r\nX-B: " + b"b" * 40_000 + b"\r\n"],
    ],
)
def test_headers_over_the_limit_are_rejected_while_they_arrive(gateway: Server, headers: list[bytes]) -> None:
    response = exchange(gateway, HEAD, *headers, LENGTH + BODY)
    assert response.startswith(b"HTTP/1.1 431 ")


def test_a_large_body_in_one_read_with_its_headers_is_not_counted_as_headers(gateway: Server) -> None:
    body = b'{"model": "plain", "x": "%b"}' % (b"a" * 200_000)
    request = LINE + b"Host: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    assert exchange(gateway, request).startswith(b"HTTP/1.1 200 ")


def test_a_chunked_body_over_the_limit_is_rejected(gateway: Server) -> None:
    chunk = b"100000\r\n" + b"a" * 0x100000 + b"\r\n"
    response = exchange(gateway, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 9)
    assert response.startswith(b"HTTP/1.1 413 ")


def test_a_request_may_arrive_byte_by_byte_or_in_chunks(gateway: Server) -> None:
    chunked = (
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n9\r\n" + BODY[:9] + b"\r\n%x;a=b\r\n" % (len(BODY) - 9)
    )
    chunked += BODY[9:] + b"\r\n0\r\n\r\n"
    for request in (HEAD + LENGTH + BODY, chunked):
        bytewise = (request[place : place + 1] for place in range(len(request)))
        response = exchange(gateway, *bytewise, until=b"\r\n0\r\n\r\n", pause_seconds=0.005)
        assert response.startswith(b"HTTP/1.1 200 ")
        assert b"[DONE]" in response


def test_pipelined_requests_get_their_responses_in_order(gateway: Server) -> None:
    unknown = b"GET /v1/models/nobody HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    response = exchange(gateway, HEAD + LENGTH + BODY + MODELS + unknown + last)
    heads = [part.split(b"\r\n")[0] for part in response.split(b"HTTP/1.1 ")[1:]]
    assert heads == [b"200 OK", b"200 OK", b"404 Not Found", b"200 OK"]
    assert response.index(b"[DONE]") < response.index(b'"object": "list"')


def test_a_malformed_request_after_a_stream_does_not_cut_the_stream(gateway: Server) -> None:
    response = exchange(gateway, HEAD + LENGTH + BODY + b"garbage\r\n\r\n")
    assert response.index(b"[DONE]") < response.index(b"HTTP/1.1 400")


def test_a_client_of_http_1_0_gets_a_stream_that_ends_with_the_connection(gateway: Server) -> None:
    response = exchange(gateway, LINE.replace(b"1.1", b"1.0") + LENGTH + BODY)
    assert b"transfer-encoding" not in response
    assert response.endswith(b"data: [DONE]\n\n")


def test_a_client_that_waits_for_100_continue_gets_it(gateway: Server) -> None:
    response = exchange(gateway, HEAD + b"Expect: 100-continue\r\n" + LENGTH, BODY, until=b"\r\n0\r\n\r\n")
    assert response.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")


def test_head_and_options_get_responses(gateway: Server) -> None:
    head = exchange(gateway, b"HEAD /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert head.endswith(b"\r\n\r\n")
    options = exchange(gateway, b"OPTIONS /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert options.startswith(b"HTTP/1.1 405 ")
    assert b"allow: GET\r\n" in options


def test_an_incomplete_request_times_out() -> None:
    async def send_half_a_request() -> bytes:
        stop = asyncio.Event()
        listener = bind_socket("127.0.0.1", 0, shared=False)
        listener.listen()
        server = GatewayServer(Gateway(StaticRoutingTable([])))
        serving = asyncio.create_task(server.serve(listener, stop))
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(HEAD + b"X-A:")
        while not any(connection.parser.in_request for connection in server.state.connections):
            await asyncio.sleep(0.01)
        (connection,) = server.state.connections
        connection.check_timeout(time.monotonic() + HEAD_TIMEOUT_SECONDS - 1)
        assert not connection.rejected
        connection.check_timeout(time.monotonic() + HEAD_TIMEOUT_SECONDS)
        response = await reader.readline()
        writer.close()
        stop.set()
        await serving
        return response

    assert asyncio.run(send_half_a_request()).startswith(b"HTTP/1.1 408 ")


def test_other_paths_of_an_engine_are_unreachable(gateway: Server, fake_engine: FakeEngine) -> None:
    before = sum(fake_engine.request_counts.values())
    for path in (
        "/v1/load_lora_adapter",
        "/v1/../sleep",
        "/v1/chat/completions/../../sleep",
        "/v1/%2e%2e/sleep",
    ):
        line = b"POST %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" % path.encode()
        assert exchange(gateway, line + LENGTH + BODY).startswith(b"HTTP/1.1 404 ")
    assert sum(fake_engine.request_counts.values()) == before


def test_a_slow_reader_pauses_the_engine_and_costs_no_memory(
    gateway: Server, fake_engine: FakeEngine
) -> None:
    process = psutil.Process(gateway.process.pid)
    before = process.memory_info().rss
    body = b'{"model": "flood", "stream": true}'
    with connect(gateway) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        n_sent = 0
        while n_sent == 0 or fake_engine.n_flood_events > n_sent:
            n_sent = fake_engine.n_flood_events
            time.sleep(0.3)
        assert n_sent < 40
        assert process.memory_info().rss - before < 8 * 2**20
        size = 0
        while chunk := connection.recv(2**20):
            size += len(chunk)
            if chunk.endswith(b"0\r\n\r\n"):
                break
    assert size > 40_000_000


def test_connections_to_the_engine_are_reused(gateway: Server, fake_engine: FakeEngine) -> None:
    before = len(fake_engine.peers)
    for _ in range(20):
        assert gateway.post("/v1/chat/completions", {"model": "plain"})[0] == 200
    assert len(fake_engine.peers) - before <= 1
