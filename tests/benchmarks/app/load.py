"""Timed requests over kept-alive connections, from one thread or several."""

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
    """Latencies of requests or calls, and their total duration, in seconds."""

    latencies: list[float]
    seconds: float

    @property
    def rate(self) -> float:
        """Return requests per second."""
        return len(self.latencies) / self.seconds


class LoadClient:
    """One connection. The standard library's client needs less CPU than others, which the server then has."""

    def __init__(self, base_url: str) -> None:
        address = urlsplit(base_url)
        assert address.hostname is not None
        self._connection = http.client.HTTPConnection(address.hostname, address.port)

    def post(self, path: str, body: Any) -> Any:
        """Return the JSON of a response that must have the status 201."""
        return self._send("POST", path, json.dumps(body), 201)

    def get(self, path: str) -> Any:
        """Return the JSON of a response that must have the status 200."""
        return self._send("GET", path, None, 200)

    def _send(self, method: str, path: str, body: str | None, expected: int) -> Any:
        headers = {"Content-Type": "application/json"} if body else {}
        self._connection.request(method, path, body, headers)
        response = self._connection.getresponse()
        content = response.read()
        assert response.status == expected, content
        return json.loads(content)


def post_many(base_url: str, path: str, body: Any, count: int, concurrency: int) -> LoadResult:
    """Post a body `count` times over `concurrency` connections, after one uncounted post on each."""
    clients = [LoadClient(base_url) for _ in range(concurrency)]
    for client in clients:
        client.post(path, body)
    latencies: list[float] = []

    def work(client: LoadClient) -> None:
        for _ in range(count // concurrency):
            latencies.append(time_call(lambda: client.post(path, body)))

    threads = [threading.Thread(target=work, args=(client,)) for client in clients]
    started_at = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(latencies) == count // concurrency * concurrency, "a thread failed"
    return LoadResult(latencies, time.perf_counter() - started_at)


def time_call(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    started_at = time.perf_counter()
    call()
    return time.perf_counter() - started_at
