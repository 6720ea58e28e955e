"""A stand-in for OpenAI's API, which shares no code with us: fine-tuned models, their files, and chats.

Shapes follow the types of OpenAI's SDK, errors its documented codes. It limits the rate, breaks off in the
middle of a response, responds with 500, and dies; it counts what it was asked and what it has sent whole.
"""

import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.services import free_port

KEY = "sk-proj-standin0123456789abcdef"
MODEL = "ft:gpt-4o-mini-2024-07-18:acme:support:Abc123"
BASE = "gpt-4o-mini-2024-07-18"
PAGE = 2


class OpenaiStandIn:
    """The account of an organization."""

    def __init__(self) -> None:
        self.jobs: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.shutdown_dates: dict[str, str] = {}
        self.faults: Iterator[str] = iter(())
        """What happens to the next requests for chats: `limit`, `fail`, `break`, `quota`, or `ok`."""
        self.n_broken = 0
        """How many of the first responses to each prompt break off, whatever the order of the requests."""
        self.asked: Counter[str] = Counter()
        """Requests for each prompt that were read, whether or not they got a whole response."""
        self.sent: Counter[str] = Counter()
        """Whole responses for each prompt."""
        self.bodies: list[dict[str, Any]] = []
        self.seconds = 0.0
        """How long a response takes."""
        self.unsupported: set[str] = set()
        self.refused_texts: set[str] = set()
        self.answers: dict[str, str] = {}
        self.change: Callable[[dict[str, Any]], Any] = lambda response: response
        """Makes a response malformed."""
        self.lock = threading.Lock()
        # Not one that the kernel assigns to others while the account is dead.
        self.port = free_port()
        self._server: ThreadingHTTPServer | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        """Listen, after a death on the same port."""
        handler = type("Handler", (_Handler,), {"account": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def die(self) -> None:
        """Stop listening; requests in progress lose their connection."""
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()

    def add_model(
        self, rows: list[dict[str, Any]], validation: list[dict[str, Any]] | None = None, **fields: Any
    ) -> None:
        """Add a succeeded fine-tuning job with its files."""
        number = len(self.jobs)
        training, checks = f"file-training{number}", f"file-validation{number}" if validation else None
        self.files[training] = _lines(rows)
        if checks is not None:
            self.files[checks] = _lines(validation or [])
        job = {
            "id": f"ftjob-{number}",
            "object": "fine_tuning.job",
            "created_at": 1_760_000_000 + number,
            "finished_at": 1_760_000_900 + number,
            "model": BASE,
            "fine_tuned_model": MODEL,
            "organization_id": "org-acme",
            "status": "succeeded",
            "training_file": training,
            "validation_file": checks,
            "result_files": [],
            "hyperparameters": {"n_epochs": 3, "batch_size": 1, "learning_rate_multiplier": 1.8},
            "trained_tokens": 3 * len(self.files[training]) // 4,
            "seed": 42,
            "error": None,
            "estimated_finish": None,
            "integrations": [],
            "metadata": None,
            "method": {
                "type": "supervised",
                "supervised": {
                    "hyperparameters": {"n_epochs": 3, "batch_size": 1, "learning_rate_multiplier": 1.8}
                },
            },
        }
        # The newest job comes first.
        self.jobs.insert(0, job | fields)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    account: OpenaiStandIn

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        if not self._is_authorized():
            return
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        account = self.account
        if url.path == "/v1/fine_tuning/jobs":
            self._send(200, _page(account.jobs, query))
        elif url.path == "/v1/models":
            models = [
                self._model(name)
                for name in sorted({BASE, *(job["fine_tuned_model"] for job in account.jobs)})
            ]
            self._send(200, {"object": "list", "data": models})
        elif match := re.fullmatch(r"/v1/files/([^/]+)(/content)?", url.path):
            content = account.files.get(match[1])
            if content is None:
                self._fail(404, f"No such File object: {match[1]}", "invalid_request_error", None, "id")
            elif match[2]:
                self._send_bytes(200, content, "application/octet-stream")
            else:
                self._send(200, _file(match[1], content))
        else:
            self._fail(404, f"Invalid URL (GET {url.path})", "invalid_request_error", "unknown_url")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not self._is_authorized():
            return
        account, text = self.account, body["messages"][-1]["content"]
        with account.lock:
            fault = next(account.faults, "ok")
            account.asked[text] += 1
            if account.asked[text] <= account.n_broken:
                fault = "break"
            account.bodies.append(body)
        if body["model"] not in {job["fine_tuned_model"] for job in account.jobs}:
            message = f"The model `{body['model']}` does not exist or you do not have access to it."
            self._fail(404, message, "invalid_request_error", "model_not_found", "model")
        elif fault == "limit":
            headers = {
                "retry-after-ms": "30",
                "retry-after": "1",
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": "20ms",
            }
            message = "Rate limit reached for requests per min (RPM). Please try again in 20ms."
            self._fail(429, message, "requests", "rate_limit_exceeded", headers=headers)
        elif fault == "quota":
            message = "You exceeded your current quota, please check your plan and billing details."
            self._fail(429, message, "insufficient_quota", "insufficient_quota")
        elif fault == "fail":
            message = "The server had an error while processing your request. Sorry about that!"
            self._fail(500, message, "server_error", None, headers={"retry-after-ms": "10"})
        elif parameter := next((name for name in sorted(account.unsupported) if name in body), None):
            message = f"Unsupported parameter: '{parameter}' is not supported with this model."
            self._fail(400, message, "invalid_request_error", "unsupported_parameter", parameter)
        elif text in account.refused_texts:
            self._fail(
                400, "Invalid prompt: your prompt was flagged.", "invalid_request_error", "invalid_prompt"
            )
        else:
            time.sleep(account.seconds)
            self._send(200, account.change(self._complete(body, text)), is_cut=fault == "break")
            if fault != "break":
                with account.lock:
                    account.sent[text] += 1

    def _complete(self, body: dict[str, Any], text: str) -> dict[str, Any]:
        answer = self.account.answers.get(text, text.upper())
        words = answer.split()
        tokens: list[dict[str, Any]] = [
            {"token": word, "logprob": -0.25, "bytes": None, "top_logprobs": []} for word in words
        ]
        logprobs = {"content": tokens, "refusal": None} if body.get("logprobs") else None
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": answer, "refusal": None, "annotations": []},
            "logprobs": logprobs,
            "finish_reason": "stop",
        }
        n_prompt, n_completion = len(json.dumps(body["messages"])) // 4, len(words)
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1_764_000_000,
            "model": body["model"],
            "choices": [choice],
            "usage": {
                "prompt_tokens": n_prompt,
                "completion_tokens": n_completion,
                "total_tokens": n_prompt + n_completion,
            },
            "service_tier": "default",
            "system_fingerprint": "fp_1",
        }

    def _model(self, name: str) -> dict[str, Any]:
        shutdown = self.account.shutdown_dates.get(name)
        return {"id": name, "object": "model", "created": 1, "owned_by": "acme", "shutdown_date": shutdown}

    def _is_authorized(self) -> bool:
        if self.headers.get("authorization") == f"Bearer {KEY}":
            return True
        message = (
            "Incorrect API key provided: sk-wrong. You can find your API key at https://platform.openai.com."
        )
        self._fail(401, message, "invalid_request_error", "invalid_api_key")
        return False

    def _fail(
        self,
        status: int,
        message: str,
        kind: str,
        code: str | None,
        parameter: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        error = {"message": message, "type": kind, "param": parameter, "code": code}
        self._send(status, {"error": error}, headers=headers)

    def _send(
        self, status: int, body: Any, *, headers: dict[str, str] | None = None, is_cut: bool = False
    ) -> None:
        self._send_bytes(status, json.dumps(body).encode(), "application/json", headers, is_cut)

    def _send_bytes(
        self,
        status: int,
        content: bytes,
        media_type: str,
        headers: dict[str, str] | None = None,
        is_cut: bool = False,
    ) -> None:
        self.send_response(status)
        for name, value in {"content-type": media_type, "x-request-id": "req_1", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if is_cut else content)
        self.wfile.flush()
        if is_cut:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True


def _page(items: list[dict[str, Any]], query: dict[str, str]) -> dict[str, Any]:
    """Return a page after an item; a page is small, so that clients must read several."""
    ids = [item["id"] for item in items]
    start = ids.index(query["after"]) + 1 if "after" in query else 0
    end = start + min(PAGE, int(query.get("limit", "20")))
    return {"object": "list", "data": items[start:end], "has_more": end < len(items)}


def _file(file_id: str, content: bytes) -> dict[str, Any]:
    return {
        "id": file_id,
        "object": "file",
        "bytes": len(content),
        "created_at": 1,
        "filename": f"{file_id}.jsonl",
        "purpose": "fine-tune",
        "status": "processed",
    }


def _lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
