"""Requests over kept-alive connections, each timed, from one thread or from several."""

import http.client
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class LoadResult:
    """What a number of requests or calls took, in seconds."""

    latencies: list[float]
    seconds: float

    @property
    def rate(self) -> float:
        """How many a second."""
        return len(self.latencies) / self.seconds


class LoadClient:
    """One connection; the standard library's client takes less from the server's cores than a richer one."""

    def __init__(self, base_url: str) -> None:
        address = urlsplit(base_url)
        assert address.hostname is not None
        self._connection = http.client.HTTPConnection(address.hostname, address.port)

    def post(self, path: str, body: Any) -> Any:
        """The JSON of an answer that must be a 201."""
        return self._send("POST", path, json.dumps(body), 201)

    def get(self, path: str) -> Any:
        """The JSON of an answer that must be a 200."""
        return self._send("GET", path, None, 200)

    def _send(self, method: str, path: str, body: str | None, expected: int) -> Any:
        headers = {"Content-Type": "application/json"} if body else {}
        self._connection.request(method, path, body, headers)
        answer = self._connection.getresponse()
        content = answer.read()
        assert answer.status == expected, content
        return json.loads(content)


def post_many(base_url: str, path: str, body: Any, count: int, concurrency: int) -> LoadResult:
    """Post one body `count` times over so many connections, after one post on each that is not counted."""
    clients = [LoadClient(base_url) for _ in range(concurrency)]
    for client in clients:
        client.post(path, body)
    latencies: list[float] = []

    def work(client: LoadClient) -> None:
        for _ in range(count // concurrency):
            latencies.append(time_call(lambda: client.post(path, body)))

    threads = [threading.Thread(target=work, args=(client,)) for client in clients]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(latencies) == count // concurrency * concurrency, "a thread has failed"
    return LoadResult(latencies, time.perf_counter() - begun)


def time_call(call: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun
