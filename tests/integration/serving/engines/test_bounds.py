"""What a hostile template or a long prompt may cost an engine: one refused request, and little else.

The engine has a window of 256 tokens, the base, and adapters whose chat templates hang, allocate or attack.
Memory is that of the engine's process.
"""

import json
import shutil
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from tests.integration.serving.conftest import BASE_SAYS, WAIT_SECONDS, Server, one_engine, serving, wait_for

HANGS = "{{ 9 ** (9 ** 9) }}"
GROWS = "{{ 'x' * 3000000000 }}"
ATTACKS = "{{ cycler.__init__.__globals__.os.popen('id').read() }}"
CHAT = [{"role": "user", "content": "hello"}]
LONG_TEXT = "word " * 1_500_000
MIB = 2**20


@pytest.fixture(scope="module")
def bounded(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Yield the engine."""
    folder = tmp_path_factory.mktemp("bounded")
    arguments = ["--model", str(tiny / "base"), "--served-name", "base", "--max-model-len", "256"]
    for name, template in {"hangs": HANGS, "grows": GROWS, "attacks": ATTACKS}.items():
        shutil.copytree(tiny / "alpha", folder / name)
        (folder / name / "chat_template.jinja").write_text(template)
        arguments += ["--adapter", f"{name}={folder / name}"]
    with serving(folder / "log", "serving.engines.hf", *arguments) as server:
        yield server.wait_until_ready()


@pytest.fixture(scope="module")
def memory_bytes(bounded: Server) -> Iterator[Any]:
    """Return a function that measures the memory of the engine."""
    process = psutil.Process(bounded.process.pid)
    bounded.chat("base")
    yield lambda: process.memory_info().rss


def post(server: Server, path: str, body: Any, seconds: float = WAIT_SECONDS) -> httpx2.Response:
    return httpx2.post(server.url + path, json=body, timeout=seconds)


def error_of(response: httpx2.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


@pytest.mark.parametrize(
    ("model", "code"),
    [
        ("hangs", "template_too_slow"),
        ("grows", "template_too_large"),
        ("attacks", "template_unsafe"),
    ],
)
def test_a_template_that_cannot_be_used_fails_its_chat_alone(
    bounded: Server, memory_bytes: Any, model: str, code: str
) -> None:
    before = memory_bytes()
    response = post(bounded, "/v1/chat/completions", {"model": model, "messages": CHAT})
    assert error_of(response) == (400, code)
    assert repr(model) in response.json()["error"]["message"]
    assert bounded.chat("base") == BASE_SAYS
    assert memory_bytes() - before < 100 * MIB


def test_a_hanging_template_delays_no_other_chat(bounded: Server) -> None:
    with ThreadPoolExecutor() as clients:
        body = {"model": "hangs", "messages": CHAT}
        hanging = clients.submit(post, bounded, "/v1/chat/completions", body)
        wait_for(lambda: bounded.get("/health")[1]["tokenizing"] == 1)
        assert bounded.chat("base") == BASE_SAYS
        assert not hanging.done()
        assert error_of(hanging.result())[0] == 400


def counts(server: Server) -> tuple[int, int]:
    """Return the waiting prompts and those that are being tokenized."""
    health = server.get("/health")[1]
    return health["waiting"], health["tokenizing"]


def test_waiting_prompts_are_counted_and_leave_with_their_clients(bounded: Server) -> None:
    stop = threading.Event()

    def leave() -> None:
        body = json.dumps({"model": "hangs", "messages": CHAT}).encode()
        head = f"POST /tokenize HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", int(bounded.url.rpartition(":")[2]))) as client:
            client.sendall(head + body)
            stop.wait(120)

    clients = [threading.Thread(target=leave) for _ in range(5)]
    for client in clients:
        client.start()
    wait_for(lambda: counts(bounded) == (3, 2))
    stop.set()
    # Five prompts that were all rendered, two at a time, would never be in this state.
    wait_for(lambda: counts(bounded) == (0, 2))
    wait_for(lambda: counts(bounded) == (0, 0))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": LONG_TEXT, "max_tokens": 1}),
        ("/v1/completions", {"prompt": ["hello", LONG_TEXT], "max_tokens": 1}),
        ("/v1/completions", {"prompt": [5] * 1_000_000, "max_tokens": 1}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": LONG_TEXT}]}),
        ("/v1/responses", {"input": LONG_TEXT}),
        ("/tokenize", {"prompt": LONG_TEXT}),
        ("/tokenize", {"messages": [{"role": "user", "content": LONG_TEXT}]}),
        ("/detokenize", {"tokens": [5] * 1_000_000}),
    ],
)
def test_a_prompt_that_cannot_fit_is_refused_before_it_is_tokenized(
    bounded: Server, memory_bytes: Any, path: str, body: dict[str, Any]
) -> None:
    before = memory_bytes()
    response = post(bounded, path, {"model": "base", **body})
    assert error_of(response) == (400, "context_length_exceeded")
    # Tokenizing this text takes 1.5 GiB.
    assert memory_bytes() - before < 250 * MIB


def test_six_long_prompts_stop_nobody(bounded: Server, memory_bytes: Any) -> None:
    body = {"model": "base", "prompt": LONG_TEXT, "max_tokens": 1}
    before = memory_bytes()
    with ThreadPoolExecutor(6) as clients:
        sent = [clients.submit(post, bounded, "/v1/completions", body) for _ in range(6)]
        assert bounded.chat("base") == BASE_SAYS
        assert {error_of(one.result()) for one in sent} == {(400, "context_length_exceeded")}
    assert memory_bytes() - before < 250 * MIB


def test_more_waiting_text_than_the_limit_is_refused_with_a_time_to_retry(bounded: Server) -> None:
    long = {"model": "base", "messages": [{"role": "user", "content": LONG_TEXT}]}
    bodies = [json.dumps(body).encode() for body in ({"model": "hangs", "messages": CHAT}, long)]

    def send(body: bytes) -> httpx2.Response:
        return httpx2.post(f"{bounded.url}/v1/chat/completions", content=body, timeout=WAIT_SECONDS)

    with ThreadPoolExecutor(16) as clients:
        # Two at a time, for twice as long as nine of the long ones take to arrive on a busy machine.
        busy = [clients.submit(send, bodies[0]) for _ in range(4)]
        wait_for(lambda: counts(bounded) == (2, 2))
        sent = [clients.submit(send, bodies[1]) for _ in range(12)]
        responses = [one.result() for one in sent]
        assert [error_of(one.result())[0] for one in busy] == [400] * 4
    refused = [response for response in responses if response.status_code == 503]
    assert refused
    assert all(int(response.headers["retry-after"]) > 0 for response in refused)
    assert bounded.chat("base") == BASE_SAYS


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user"}] * 100_000},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 100_000}]},
        {"messages": CHAT, "chat_template_kwargs": {str(n): 1 for n in range(100_000)}},
    ],
)
def test_a_body_of_many_small_parts_is_refused(bounded: Server, body: dict[str, Any]) -> None:
    response = post(bounded, "/v1/chat/completions", {"model": "base", **body})
    assert error_of(response) == (400, "invalid_request")


def test_clients_that_leave_write_nothing_to_the_log(tiny: Path, tmp_path: Path) -> None:
    with one_engine(tiny, tmp_path) as server:
        body = {"model": "base", "prompt": "하나", "max_tokens": 2000, "ignore_eos": True, "stream": True}
        content = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(content)}\r\n\r\n"
        for _ in range(40):
            client = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])))
            client.sendall(head.encode() + content)
            client.recv(100)
            # A reset, as of a process that was killed.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        wait_for(lambda: server.get("/health")[1]["running"] == 0)
    assert server.log.read_text() == ""
