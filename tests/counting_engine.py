"""A stand-in for an engine that appends each request to a file, which survives whatever ends it.

It completes with the last number of the prompt, which `--wrong MODEL` gets wrong for odd numbers.
"""

import argparse
import json
import os
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class CountingEngine(ThreadingHTTPServer):
    """The server; `ledger` is the file of requests.

    More `max_tokens` than `room` are rejected as vLLM rejects them; without the field a completion may use
    what is left. `room=0` rejects every request. The file `allowed` contains how many requests are completed,
    of all in the ledger; the others wait.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        ledger: Path,
        port: int = 0,
        seconds: float = 0.0,
        wrong: str = "",
        room: int = 10**6,
        allowed: Path | None = None,
    ) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.ledger, self.seconds, self.wrong, self.room = ledger, seconds, wrong, room
        self.allowed = allowed
        self._lock = threading.Lock()

    def handle_error(self, *_: object) -> None:
        """Say nothing of a client that was killed."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def record(self, request: dict[str, Any]) -> None:
        with self._lock:
            with self.ledger.open("a", encoding="utf-8") as file:
                file.write(json.dumps(request) + "\n")
                file.flush()
                os.fsync(file.fileno())
            number = len(read_ledger(self.ledger)) if self.allowed else 0
        # A file that is being written is empty for a moment.
        while self.allowed and number > int(self.allowed.read_text() or 0):
            time.sleep(0.02)


class _Handler(BaseHTTPRequestHandler):
    server: CountingEngine
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._respond({"status": "ok", "version": "1.2.3", "data": []})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        wanted, room = body.get("max_tokens", 0), self.server.room
        if wanted > room or room == 0:
            reason = f"max_tokens={wanted} cannot be greater than max_model_len={room}."
            self._respond({"error": {"message": reason, "param": "max_tokens", "code": 400}}, 400)
            return
        if wanted == 1:  # The worker's probe.
            self._respond({"choices": [{"message": {"content": "1"}}]})
            return
        text = body["messages"][-1]["content"]
        self.server.record({"model": body["model"], "prompt": text, "seed": body["seed"]})
        time.sleep(self.server.seconds)
        number = int(re.findall(r"\d+", text)[-1])
        is_wrong = body["model"] == self.server.wrong and number % 2
        message = {"role": "assistant", "content": f"#### {number + 1 if is_wrong else number}"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self._respond({"choices": [choice], "usage": {"completion_tokens": 3}})

    def _respond(self, value: dict[str, Any], status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """Return all requests."""
    return (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--ledger", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--allowed", type=Path)
    options, _ = parser.parse_known_args()
    CountingEngine(options.ledger, options.port, allowed=options.allowed).serve_forever()
