"""Bodies that are compressed, too large, refused or never complete, on both servers."""

import contextlib
import gzip
import json
import time
import zlib

import httpx2
import pytest

from serving.http.limits import BODY_TIMEOUT_SECONDS, MAX_BODY_BYTES
from tests.integration.serving.conftest import Server
from tests.integration.serving.fake_engine import FakeEngine
from tests.integration.serving.http.raw_client import connect, exchange, receive, send

CHAT = "/v1/chat/completions"
JOBS = "/api/v1/jobs/dry-run"
JSON = "Content-Type: application/json"
BODY = b'{"model": "plain"}'
BOMB = gzip.compress(b'{"model": "plain", "user": "' + b"a" * MAX_BODY_BYTES + b'"}', mtime=0)
# Without the time, so that parallel processes collect the same tests.
PACKED = gzip.compress(BODY, mtime=0)


def test_a_gzip_body_is_unpacked(edge: Server) -> None:
    response = send(edge, "POST", CHAT, JSON, "Content-Encoding: gzip", body=PACKED)
    assert response.status == 200


@pytest.mark.parametrize("path", [CHAT, JOBS])
@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        ("gzip", BOMB, 413),
        ("gzip", BODY, 400),
        ("gzip", PACKED[:-9], 400),
        ("gzip", PACKED + BODY, 400),
        ("zstd", BODY, 415),
        ("br", BODY, 415),
        ("deflate", zlib.compress(BODY), 415),
        ("gzip, gzip", gzip.compress(PACKED, mtime=0), 415),
    ],
)
def test_another_encoding_or_an_oversized_body_is_refused(
    edge: Server, path: str, encoding: str, body: bytes, status: int
) -> None:
    response = send(edge, "POST", path, JSON, f"Content-Encoding: {encoding}", body=body)
    assert response.status in (status, 404)  # The standalone gateway has no jobs.
    assert json.loads(response.body)["error"]["message"]


def test_the_api_unpacks_json_and_refuses_a_compressed_upload(api: Server) -> None:
    spec = b'{"name": "x", "stages": []}'
    plain = send(api, "POST", JOBS, JSON, body=spec)
    packed = send(api, "POST", JOBS, JSON, "Content-Encoding: gzip", body=gzip.compress(spec))
    assert (packed.status, packed.body) == (plain.status, plain.body) and plain.status == 422
    form = "Content-Type: multipart/form-data; boundary=x"
    upload = send(api, "POST", "/api/v1/datasets", form, "Content-Encoding: gzip", body=gzip.compress(b"x"))
    assert upload.status == 415


def test_json_over_the_limit_is_refused_and_a_larger_upload_is_not(api: Server) -> None:
    spec = b'{"name": "' + b"a" * MAX_BODY_BYTES + b'"}'
    assert send(api, "POST", JOBS, JSON, body=spec).status == 413
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b" * 1000}]}
    file = json.dumps(row).encode() + b"\n"
    form = {"file": ("big.jsonl", file * (MAX_BODY_BYTES // len(file) + 2))}
    assert httpx2.post(f"{api.url}/api/v1/datasets", files=form, timeout=60).status_code == 201


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("POST", "/v1/nothing", 404), ("PUT", "/v1/models", 405), ("POST", CHAT, 404)],
)
def test_a_refused_request_with_a_body_leaves_the_connection_usable(
    edge: Server, method: str, path: str, status: int
) -> None:
    body = b'{"model": "nobody", "user": "%b"}' % (b"a" * 100_000)
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    models = b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    response = exchange(edge, head, body[:50_000], body[50_000:], models)
    statuses = [int(part.split()[0]) for part in response.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [status, 200]


def test_half_sent_bodies_do_not_delay_other_clients(edge: Server) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n{{".encode()
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(connect(edge)).sendall(head)
        started = time.perf_counter()
        assert send(edge, "POST", CHAT, JSON, body=BODY).status == 200
        # Until the bodies time out, a server that waited for them would serve nobody.
        assert time.perf_counter() - started < BODY_TIMEOUT_SECONDS / 2


def test_a_malformed_chunk_is_refused_and_ends_the_request(api: Server) -> None:
    """The application is waiting for the rest of the upload when the malformed chunk arrives."""
    head = (
        b"POST /api/v1/datasets HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        b"Content-Type: multipart/form-data; boundary=x\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    with connect(api) as connection:
        connection.sendall(head + b"3\r\n--x\r\n")
        time.sleep(0.1)
        connection.sendall(b"nonsense\r\n")
        assert receive(connection).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/v1/chat/completions/",
        "/v1/chat/completions/../../sleep",
        "/v1/../sleep",
        "/v1/%2e%2e/sleep",
        "/v1//chat/completions",
        "/v1/images/generations",
        "/v1/chat/completions;x",
        "/sleep",
        "/tokenize",
        "/collective_rpc",
        "http://127.0.0.1/pause",
    ],
)
def test_only_listed_paths_reach_an_engine(edge: Server, fake_engine: FakeEngine, path: str) -> None:
    before = sum(fake_engine.request_counts.values())
    assert send(edge, "POST", path, JSON, body=BODY).status == 404
    assert sum(fake_engine.request_counts.values()) == before


@pytest.mark.parametrize("field", ["mm_processor_kwargs", "regex", "vllm_xargs", "prompt_embeds"])
def test_only_listed_fields_reach_an_engine(edge: Server, fake_engine: FakeEngine, field: str) -> None:
    before = sum(fake_engine.request_counts.values())
    body = json.dumps({"model": "plain", field: "x"}).encode()
    response = send(edge, "POST", CHAT, JSON, body=body)
    assert (response.status, json.loads(response.body)["error"]["param"]) == (400, field)
    assert sum(fake_engine.request_counts.values()) == before
