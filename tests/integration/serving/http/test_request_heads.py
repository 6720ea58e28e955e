"""Request lines and headers that are malformed, ambiguous or too large, on both servers.

Method: raw bytes over a socket. A limit must hold before the bytes are parsed or buffered, and a refusal must
neither disturb other clients nor the response in progress on the same connection.
"""

import json
import threading
import time

import pytest

from tests.integration.serving.conftest import Server
from tests.integration.serving.http.raw_client import CHUNKED_END, connect, exchange, parse, receive, send

BODY = b'{"model": "slow", "stream": true}'
LINE = b"POST /v1/chat/completions HTTP/1.1\r\n"
HEAD = LINE + b"Host: 127.0.0.1\r\n"
LENGTH = b"Content-Length: %d\r\n\r\n" % len(BODY)
MODELS = b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
# The headers of Java's HttpClient and of `curl --http2`.
H2C = (
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"
)


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
        HEAD + b"Host: 127.0.0.2\r\n" + LENGTH + BODY,
        HEAD + b"Authorization: Bearer a\r\nAuthorization: Bearer b\r\n" + LENGTH + BODY,
        HEAD + b"Origin: http://127.0.0.1\r\nOrigin: http://evil.example\r\n" + LENGTH + BODY,
        (HEAD + LENGTH).replace(b"\r\n", b"\n") + BODY,
        LINE + LENGTH + BODY,
        b"POST /v1/chat/completions\r\nHost: 127.0.0.1\r\n" + LENGTH + BODY,
        HEAD.replace(b"HTTP/1.1", b"HTTP/0.9") + LENGTH + BODY,
        HEAD.replace(b"HTTP/1.1", b"HTTP/2.0") + LENGTH + BODY,
        LINE.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"CONNECT engine:8000 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        "GET /v1/모델 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode(),
        b"\x16\x03\x01 hello\r\n\r\n",
    ],
)
def test_an_ambiguous_request_is_rejected(edge: Server, request_bytes: bytes) -> None:
    response = exchange(edge, request_bytes)
    assert response.startswith(b"HTTP/1.1 400 ")
    assert response.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in response
    assert json.loads(response.partition(b"\r\n\r\n")[2])["error"]["code"] == "malformed_request"


@pytest.mark.parametrize(
    "host", ["127.0.0.1:80@evil.example", "127.0.0.1:80/?", "127.0.0.1:", "a b", "[::1", "x/y", "x#y", "é"]
)
def test_a_host_header_with_more_than_a_name_and_a_port_is_rejected(edge: Server, host: str) -> None:
    response = exchange(
        edge, f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
    )
    assert response.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("status", "parts"),
    [
        (431, [HEAD, b"X-A: " + b"a" * 100_000 + b"\r\n"]),
        (431, [HEAD, *[b"X-A: " + b"a" * 1000] * 100]),
        (431, [HEAD, b"X-A: a\r\n" * 101]),
        (431, [HEAD, b"X-A: " + b"a" * 30_000 + b"\r\nX-B: " + b"b" * 40_000 + b"\r\n"]),
        (414, [b"GET /v1/models?" + b"a" * 17_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"]),
    ],
)
def test_a_head_over_the_limit_is_rejected_while_it_arrives(
    edge: Server, status: int, parts: list[bytes]
) -> None:
    response = exchange(edge, *parts, LENGTH + BODY)
    assert response.startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/chat/completions", b'{"model": "plain"}', 200),
        ("/v1/chat/completions", b'{"model": "nobody"}', 404),
        ("/api/v1/jobs/dry-run", b'{"name": "x", "stages": []}', 422),
    ],
)
def test_an_upgrade_to_http_2_is_ignored_and_the_body_is_kept(
    edge: Server, path: str, body: bytes, status: int
) -> None:
    """Compare the response with that of the same request without Upgrade; whole, and byte by byte."""
    rest = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    start = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n".encode()
    plain = parse(exchange(edge, start + b"Connection: close\r\n" + rest))
    close = H2C.replace(b"Upgrade, ", b"close, Upgrade, ")
    upgraded = parse(exchange(edge, start + close + rest))
    bytewise = [(start + close + rest)[place : place + 1] for place in range(len(start + close + rest))]
    slowly = parse(exchange(edge, *bytewise, pause_seconds=0))
    assert plain.status in (status, 404)  # The standalone gateway has no jobs.
    for response in (upgraded, slowly):
        assert (response.status, response.body) == (plain.status, plain.body)


def test_a_connection_stays_usable_after_an_ignored_upgrade(edge: Server) -> None:
    response = exchange(edge, HEAD + H2C + LENGTH + BODY, MODELS, until=b'"object": "list"')
    assert response.count(b"HTTP/1.1 200 ") == 2 and b"[DONE]" in response


def test_a_malformed_request_after_a_stream_does_not_cut_the_stream(edge: Server) -> None:
    response = exchange(edge, HEAD + LENGTH + BODY + b"garbage\r\n\r\n")
    assert response.index(b"[DONE]") < response.index(b"HTTP/1.1 400")


def test_a_malformed_chunk_of_a_pipelined_request_leaves_the_response_before_it_whole(edge: Server) -> None:
    second = HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n"
    response = exchange(edge, HEAD + LENGTH + BODY + second)
    assert response.index(b"[DONE]") < response.index(b"HTTP/1.1 400")
    assert response.count(b"HTTP/1.1 ") == 2


def test_pipelined_requests_get_their_responses_in_order(edge: Server) -> None:
    unknown = b"GET /v1/models/nobody HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    last = MODELS.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    response = exchange(edge, HEAD + LENGTH + BODY + MODELS + unknown + last)
    heads = [part.split(b"\r\n")[0] for part in response.split(b"HTTP/1.1 ")[1:]]
    assert heads == [b"200 OK", b"200 OK", b"404 Not Found", b"200 OK"]
    assert response.index(b"[DONE]") < response.index(b'"object": "list"')


def test_a_request_may_arrive_byte_by_byte_or_in_chunks(edge: Server) -> None:
    chunked = (
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n9\r\n" + BODY[:9] + b"\r\n%x;a=b\r\n" % (len(BODY) - 9)
    )
    chunked += BODY[9:] + b"\r\n0\r\nTrailer: x\r\n\r\n"
    for request in (HEAD + LENGTH + BODY, chunked):
        bytewise = (request[place : place + 1] for place in range(len(request)))
        response = exchange(edge, *bytewise, until=CHUNKED_END, pause_seconds=0.002)
        assert response.startswith(b"HTTP/1.1 200 ")
        assert b"[DONE]" in response


def test_a_client_that_waits_for_100_continue_gets_it(edge: Server) -> None:
    with connect(edge) as connection:
        connection.sendall(HEAD + b"Expect: 100-continue\r\n" + LENGTH)
        assert receive(connection, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(BODY)
        assert receive(connection, CHUNKED_END).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/models/plain", "/health", "/metrics", "/healthz", "/readyz", "/api/v1/jobs"]
)
def test_head_gets_the_headers_of_get(edge: Server, path: str) -> None:
    get, head = send(edge, "GET", path), send(edge, "HEAD", path)
    assert (head.status, head.body) == (get.status, b"")
    assert head.headers["content-type"] == get.headers["content-type"]


def test_head_of_an_endless_stream_ends(api: Server) -> None:
    assert send(api, "HEAD", "/api/v1/runs/run_none/events/stream").status == 404
    assert send(api, "HEAD", "/docs").status == 200


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/models", {"GET", "HEAD"}),
        ("GET", "/v1/completions", {"POST"}),
        ("HEAD", "/v1/completions", {"POST"}),
    ],
)
def test_a_refused_method_lists_the_allowed_ones(
    edge: Server, method: str, path: str, allowed: set[str]
) -> None:
    response = send(edge, method, path)
    assert (response.status, set(response.headers["allow"].split(", "))) == (405, allowed)


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/api/v1/jobs", {"GET", "HEAD", "POST"}),
        ("/api/v1/datasets", {"GET", "HEAD", "POST"}),
        ("/api/v1/aliases/x", {"GET", "HEAD", "PUT", "DELETE"}),
        ("/api/v1/keys/key_x", {"GET", "HEAD", "DELETE", "PATCH"}),
        ("/healthz", {"GET", "HEAD"}),
        ("/docs", {"GET", "HEAD"}),
    ],
)
def test_the_api_lists_the_methods_of_all_routes_of_a_path(api: Server, path: str, allowed: set[str]) -> None:
    for method in ("TRACE", "OPTIONS"):
        response = send(api, method, path)
        assert (response.status, set(response.headers["allow"].split(", "))) == (405, allowed)


def test_other_clients_do_not_wait_for_a_huge_header(edge: Server) -> None:
    """A single 60 MiB header once blocked the whole process for 27 s."""
    path = "/healthz" if edge.get("/healthz")[0] == 200 else "/health"
    huge = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: " + b"a" * (60 * 2**20)
    stop = threading.Event()

    def send_huge_headers() -> None:
        while not stop.is_set():
            exchange(edge, huge, pause_seconds=0)

    sender = threading.Thread(target=send_huge_headers)
    sender.start()
    seconds = []
    try:
        with connect(edge) as connection:
            for _ in range(200):
                started = time.perf_counter()
                connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
                receive(connection, b"}")
                seconds.append(time.perf_counter() - started)
    finally:
        stop.set()
        sender.join()
    p99 = sorted(seconds)[197]
    print(f"{path} with 60 MiB headers: p99 {p99 * 1000:.1f} ms, max {max(seconds) * 1000:.1f} ms")
    # About 10 ms on an idle machine; a busy one may stop a process for seconds.
    assert p99 < 5
