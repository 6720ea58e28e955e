"""A stand-in for an OpenAI-compatible endpoint: a test decides each response and reads each request."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Respond = Callable[[dict[str, Any]], tuple[int, Any]]
"""Returns the status and the body of a response; a body that is a string is the text of a completion."""


@dataclass
class JudgeServer:
    """The address of a running server, and the requests that it got."""

    url: str
    respond: Respond
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    @property
    def materials(self) -> list[dict[str, Any]]:
        """What each request asked to judge."""
        return [json.loads(body["messages"][1]["content"]) for body in self.bodies]


def completion(text: str | None, **choice: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, **choice.pop("message", {})}
    usage = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
    return {
        "model": "judge-2026-01",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", **choice}],
        "usage": usage,
    }


@contextmanager
def serve_judge(respond: Respond) -> Iterator[JudgeServer]:
    """Run a judge on a free port of loopback."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                judge.bodies.append(body)
                judge.headers.append(dict(self.headers))
                status, content = judge.respond(body)
            content = completion(content) if isinstance(content, str) else content
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        judge = JudgeServer(f"http://127.0.0.1:{server.server_address[1]}/v1", respond)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield judge
        finally:
            server.shutdown()
            thread.join()
