"""The standalone gateway's HTTP server and malformed, slow or hostile clients."""

import socket
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.integration.serving.conftest import Server, gateway_over
from tests.integration.serving.fake_engine import FakeEngine
from tests.integration.serving.http.raw_client import connect, exchange

BODY = b'{"model": "slow", "stream": true}'
LINE = b"POST /v1/chat/completions HTTP/1.1\r\n"
HEAD = LINE + b"Host: 127.0.0.1\r\n"
LENGTH = b"Content-Length: %d\r\n\r\n" % len(BODY)
MODELS = b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@pytest.fixture(scope="module")
def gateway(fake_engine: FakeEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    routes = [{"name": name, "base_url": fake_engine.url} for name in ("slow", "plain", "flood", "endless")]
    with gateway_over(routes, tmp_path_factory.mktemp("gateway")) as server:
        yield server


def test_a_large_body_in_one_read_with_its_headers_is_not_counted_as_headers(gateway: Server) -> None:
    body = b'{"model": "plain", "user": "%b"}' % (b"a" * 200_000)
    request = LINE + b"Host: 127.0.0.1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    assert exchange(gateway, request).startswith(b"HTTP/1.1 200 ")


def test_a_chunked_body_over_the_limit_is_rejected(gateway: Server) -> None:
    chunk = b"100000\r\n" + b"a" * 0x100000 + b"\r\n"
    response = exchange(gateway, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 9)
    assert response.startswith(b"HTTP/1.1 413 ")


def test_a_client_of_http_1_0_gets_a_stream_that_ends_with_the_connection(gateway: Server) -> None:
    response = exchange(gateway, HEAD.replace(b"1.1", b"1.0") + LENGTH + BODY)
    assert b"transfer-encoding" not in response
    assert response.endswith(b"data: [DONE]\n\n")


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
