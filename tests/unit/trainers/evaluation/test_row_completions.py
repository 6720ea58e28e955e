"""A stop of a batch while its requests wait for the engine."""

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trainers.configs.stages.generate import GenerateConfig
from trainers.evaluation import row_completions
from trainers.evaluation.row_completions import complete_rows
from trainers.rendering.render import PromptCompletion
from trainers.runtime.endpoints import Endpoint

COMPLETION = {
    "choices": [{"message": {"content": "4"}, "finish_reason": "stop"}],
    "usage": {"completion_tokens": 1},
}
PROMPTS = [PromptCompletion(row, [{"role": "user", "content": "2 + 2"}], [], None) for row in range(1, 9)]


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Yield the socket of an engine, for two connections at once."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        yield server


def test_a_stop_leaves_the_connections_of_waiting_requests_to_the_engine(
    listener: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = Endpoint(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", "m", is_engine=True)
    client = row_completions._open_client(endpoint, 2)
    monkeypatch.setattr(row_completions, "_open_client", lambda *_: client)
    config = GenerateConfig(model="m", dataset="rows.jsonl", concurrency=2)

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with ThreadPoolExecutor(1) as main:
        batch = main.submit(complete_rows, config, PROMPTS, endpoint, tmp_path / "out.jsonl", stop)
        first, second = sorted((listener.accept()[0] for _ in range(2)), key=read_seed)
        body = json.dumps(COMPLETION).encode()
        first.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert isinstance(batch.exception(timeout=30), KeyboardInterrupt)
        # A thread that begins to read from a connection that is closed would wait for the time limit.
        assert not client.is_closed
        first.close()
        second.close()


def read_seed(connection: socket.socket) -> int:
    """Read a request and return its seed, which grows with the row."""
    content = b""
    while b"\r\n\r\n" not in content or not content.endswith(b"}"):
        content += connection.recv(65536)
    return int(json.loads(content.partition(b"\r\n\r\n")[2])["seed"])
