"""No two servers in a row read a request differently, and no request costs much before it is refused.

Attacks on the parser that the API and the standalone gateway share, whole and in small pieces: contradictory
body lengths, odd line ends and headers, and endless heads. `tests/integration/serving/http` sends such
requests to both servers over sockets.
"""

import contextlib
import time

import httptools
import pytest

from serving.http.request_parser import RequestParser
from tests.security.regression import Regression, ignore

LINE = b"POST /v1/chat/completions HTTP/1.1\r\n"
HEAD = LINE + b"Host: x\r\n"
SMUGGLED = b"GET /api/v1/keys HTTP/1.1\r\nHost: x\r\n\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(SMUGGLED)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CONTRADICTIONS = [
    HEAD + LENGTH + CHUNKED + b"\r\n0\r\n\r\n" + SMUGGLED,
    HEAD + CHUNKED + LENGTH + b"\r\n0\r\n\r\n" + SMUGGLED,
    HEAD + b"Content-Length: 0\r\n" + LENGTH + b"\r\n" + SMUGGLED,
    HEAD + LENGTH + LENGTH + b"\r\n" + SMUGGLED,
    HEAD + b"Content-Length: 0, 39\r\n\r\n" + SMUGGLED,
    HEAD + b"Content-Length: +0\r\n\r\n" + SMUGGLED,
    HEAD + b"Content-Length: 0x0\r\n\r\n" + SMUGGLED,
    HEAD + b"Content-Length: -1\r\n\r\n" + SMUGGLED,
    HEAD + b"Content-Length : 0\r\n\r\n" + SMUGGLED,
    HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    HEAD + b"Transfer-Encoding: identity\r\n" + LENGTH + b"\r\n" + SMUGGLED,
    HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    HEAD + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    HEAD + CHUNKED + CHUNKED + b"\r\n0\r\n\r\n" + SMUGGLED,
    HEAD + CHUNKED + b"\r\n0x0\r\n\r\n" + SMUGGLED,
    HEAD + CHUNKED + b"\r\n1\r\naX0\r\n\r\n" + SMUGGLED,
    HEAD + CHUNKED + b"\r\nfffffffffffffffff\r\n" + SMUGGLED,
    HEAD.replace(b"1.1", b"1.0") + CHUNKED + b"\r\n0\r\n\r\n" + SMUGGLED,
    HEAD.replace(b"1.1", b"2.0") + b"\r\n" + SMUGGLED,
    HEAD + b"X: a\r\n folded: Content-Length: 5\r\n\r\n" + SMUGGLED,
    HEAD + b"X: a\0\r\n\r\n" + SMUGGLED,
    HEAD + b"X: a\rContent-Length: 5\r\n\r\n" + SMUGGLED,
    HEAD + b"Host: y\r\n\r\n" + SMUGGLED,
    HEAD + b"Authorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n" + SMUGGLED,
    HEAD + b"Origin: http://x\r\nOrigin: http://evil.example\r\n\r\n" + SMUGGLED,
    HEAD.replace(b"\r\n", b"\n") + b"\n" + SMUGGLED,
    LINE + b"\r\n" + SMUGGLED,
    b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n" + SMUGGLED,
    b"POST /\xff HTTP/1.1\r\nHost: x\r\n\r\n" + SMUGGLED,
    b"POST /v1/models\r\nHost: x\r\n\r\n" + SMUGGLED,
]


class RecordingParser(RequestParser):
    """A parser that records the URLs of complete requests."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[bytes] = []

    def on_end(self) -> None:
        self.urls.append(self.url)


def parse(data: bytes, size: int) -> tuple[Exception | None, list[bytes]]:
    """Feed the data in pieces until the first error; return it, and the URLs of the requests before it."""
    parser = RecordingParser()
    for start in range(0, len(data), size):
        if (error := parser.feed(data[start : start + size])) is not None:
            return error, parser.urls
    return None, parser.urls


@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize("data", CONTRADICTIONS)
def test_a_request_that_can_be_read_in_two_ways_is_refused(data: bytes, size: int) -> None:
    error, urls = parse(data, size)
    assert error is not None and b"/api/v1/keys" not in urls


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_an_upgrade_changes_nothing_about_the_body(size: int) -> None:
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\n"
    error, urls = parse(HEAD + upgrade + LENGTH + b"\r\n" + SMUGGLED + SMUGGLED, size)
    assert error is None and urls == [b"/v1/chat/completions", b"/api/v1/keys"]


def test_one_read_can_bring_thousands_of_requests() -> None:
    for head in (HEAD, HEAD + b"Connection: Upgrade\r\nUpgrade: h2c\r\n"):
        error, urls = parse((head + b"\r\n") * 2_000, 1 << 20)
        assert error is None and len(urls) == 2_000


def test_a_body_that_arrives_with_its_head_does_not_count_as_a_head() -> None:
    data = HEAD + b"Content-Length: 100000\r\n\r\n" + b"x" * 100_000
    error, urls = parse(data + HEAD, 1 << 20)
    assert error is None and urls == [b"/v1/chat/completions"]


@pytest.mark.parametrize(
    "head",
    [
        HEAD + b"X: " + b"a" * (60 << 20) + b"\r\n\r\n",
        HEAD + b"X: a\r\n" * 100_000 + b"\r\n",
        HEAD + b"X:\r\n" * 1_000 + b"\r\n",
        HEAD + b"X" * (1 << 20) + b": a\r\n\r\n",
        b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"G" * (1 << 20),
        HEAD + CHUNKED + b"\r\n0\r\n" + b"X: a\r\n" * 100_000,
        HEAD + CHUNKED + b"\r\n1;" + b"x=y;" * 100_000,
    ],
)
def test_an_endless_head_is_refused_at_its_limit(head: bytes) -> None:
    started = time.process_time()
    error, urls = parse(head, 65_536)
    assert error is not None and urls == []
    assert time.process_time() - started < 5


def feed_without_the_body(parser: RequestParser, data: bytes) -> None:
    with contextlib.suppress(httptools.HttpParserUpgrade):
        parser.parser.feed_data(data)


@pytest.mark.parametrize("size", [1, 65_536])
def test_a_body_in_chunks_of_one_byte_is_read(size: int) -> None:
    error, urls = parse(HEAD + CHUNKED + b"\r\n" + b"1\r\na\r\n" * 50_000 + b"0\r\n\r\n", size)
    assert error is None and urls == [b"/v1/chat/completions"]


REGRESSIONS = [
    Regression(
        "contradictory lengths are accepted",
        "serving.http.request_parser:RequestParser._check_head",
        ignore,
        "test_a_request_that_can_be_read_in_two_ways_is_refused",
    ),
    Regression(
        "repeated headers are accepted",
        "serving.http.request_parser:RequestParser._check_repeated",
        ignore,
        "test_a_request_that_can_be_read_in_two_ways_is_refused",
    ),
    Regression(
        "a request is parsed once only",
        "serving.http.request_parser:RequestParser._feed",
        feed_without_the_body,
        "test_an_upgrade_changes_nothing_about_the_body",
    ),
    Regression(
        "heads have no limit",
        "serving.http.request_parser:MAX_HEAD_BYTES",
        1 << 40,
        "test_an_endless_head_is_refused_at_its_limit",
    ),
    Regression(
        "headers are not counted",
        "serving.http.request_parser:MAX_HEADERS",
        1 << 40,
        "test_an_endless_head_is_refused_at_its_limit",
    ),
]
