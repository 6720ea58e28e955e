"""How soon `/healthz` responds while a few clients send what costs a server most, in one run.

    python -m tests.benchmarks.app.overload

The overloads: request heads of megabytes, prompts of 7.5 MB for a model with a small window, and chat
templates that never end. A process of its own probes `/healthz`, so that the clients do not delay it.
"""

import argparse
import contextlib
import json
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import httpx2

from tests.benchmarks.app.load import time_call
from tests.benchmarks.report import format_milliseconds, p50, p99, print_table
from tests.e2e.platform import Platform, find_engines
from trainers.starter import build_starter_model

PROMPT = "a word of a prompt " * 395_000
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = a * b %}{% endfor %}{% endfor %}"
LONG_HEADER = b"x-long: " + b"a" * (60 << 20)
MANY_HEADERS = b"\r\n".join(b"x-%d: a" % number for number in range(100_000))
INTERVAL_SECONDS = 0.02

# Sends one request of an overload; returns what became of it.
Attack = Callable[[Platform], str]


def send_long_header(platform: Platform) -> str:
    """Send a header of 60 MiB until the server closes the connection."""
    return _send(platform, LONG_HEADER)


def send_many_headers(platform: Platform) -> str:
    """Send 100,000 headers until the server closes the connection."""
    return _send(platform, MANY_HEADERS)


def send_long_prompt(platform: Platform) -> str:
    """Ask the model to continue 7.5 MB."""
    return _post(platform, "/v1/completions", {"model": "starter", "prompt": PROMPT, "max_tokens": 1})


def submit_endless_template(platform: Platform) -> str:
    """Submit a job on a base whose template never ends."""
    stage = {"stage": "sft", "base": "endless", "dataset": "train"}
    return _post(platform, "/api/v1/jobs", {"name": "endless", "stages": [stage]})


ATTACKS: dict[str, Attack] = {
    "a header of 60 MiB": send_long_header,
    "100,000 headers": send_many_headers,
    "prompts of 7.5 MB": send_long_prompt,
    "endless templates": submit_endless_template,
}


def main() -> None:
    """Measure an idle service and each overload, then print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=15, help="duration of each overload")
    parser.add_argument("--clients", type=int, default=6)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tunesmith-benchmark-") as folder:
        starter = Path(folder) / "starter"
        build_starter_model(starter, 20, 0)
        platform = Platform(Path(folder) / "data", starter)
        _add_endless_model(platform.folder / "models" / "endless", starter)
        try:
            platform.start_api()
            platform.upload_examples()
            worker = platform.start_worker()
            platform.deploy("starter")
            (engine,) = find_engines(worker)
            rows = [["idle", *_format(_probe_apart(platform, options.seconds)), "", _format_memory(engine)]]
            for name, attack in ATTACKS.items():
                latencies, outcomes = _measure(platform, attack, options)
                results = ", ".join(f"{n} × {outcome}" for outcome, n in outcomes.most_common(3))
                rows.append([name, *_format(latencies), results, _format_memory(engine)])
        finally:
            platform.stop()
    header = ["overload", "p50 ms", "p99 ms", "longest ms", "responses", "engine's memory"]
    print_table(f"/healthz with {options.clients} clients", header, rows)


def _measure(
    platform: Platform, attack: Attack, options: argparse.Namespace
) -> tuple[list[float], Counter[str]]:
    """Return the seconds of each probe of `/healthz` during the overload, and what became of its requests."""
    outcomes: Counter[str] = Counter()
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            outcomes[attack(platform)] += 1

    threads = [threading.Thread(target=work) for _ in range(options.clients)]
    for thread in threads:
        thread.start()
    latencies = _probe_apart(platform, options.seconds)
    ended.set()
    for thread in threads:
        thread.join()
    return latencies, outcomes


def _probe_apart(platform: Platform, seconds: float) -> list[float]:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_probe, platform.base_url, seconds).result()


def _probe(base_url: str, seconds: float) -> list[float]:
    latencies = []
    ends_at = time.monotonic() + seconds
    with httpx2.Client(base_url=base_url, timeout=60) as client:
        while time.monotonic() < ends_at:
            latencies.append(time_call(lambda: client.get("/healthz").raise_for_status()))
            time.sleep(INTERVAL_SECONDS)
    return latencies


def _send(platform: Platform, headers: bytes) -> str:
    host, port = platform.base_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\n")
            connection.sendall(headers)
        try:
            return connection.recv(12).decode()[-3:] or "closed"
        except OSError:
            return "closed"


def _post(platform: Platform, path: str, body: dict[str, Any]) -> str:
    response = httpx2.post(platform.base_url + path, json=body, timeout=60)
    return f"{response.status_code} {response.json().get('error', {}).get('code', '')}".strip()


def _add_endless_model(folder: Path, starter: Path) -> None:
    folder.mkdir()
    for file in starter.iterdir():
        if file.name not in ("chat_template.jinja", "tokenizer_config.json"):
            (folder / file.name).symlink_to(file)
    tokenizer = json.loads((starter / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "chat_template": ENDLESS}))


def _format(latencies: list[float]) -> list[str]:
    measures = (p50(latencies), p99(latencies), max(latencies))
    return [format_milliseconds(seconds) for seconds in measures]


def _format_memory(engine: Any) -> str:
    return f"{engine.memory_info().rss / 2**20:.0f} MiB"


if __name__ == "__main__":
    main()
