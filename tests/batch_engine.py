"""A stand-in for an engine behind a batch: fast, and with failures on request.

The last message of a chat (or the prompt, or the input) chooses the response: `status 400` fails with that
status; `busy` gets a 429 the first time; `slow` takes two seconds; `held` takes until a file `released` is
beside the ledger; `crash` ends the process; anything else is completed with itself. Each request that gets a
response with status 200 is a line of the ledger.
"""

import argparse
import asyncio
import json
import os
import re
from pathlib import Path
from typing import Any


class BatchEngine:
    """The server; `ledger` is the file of completed requests."""

    def __init__(self, ledger: Path, seconds: float = 0.0) -> None:
        self.ledger = ledger.open("a", encoding="utf-8", buffering=1)
        self.seconds = seconds
        self._released = ledger.with_name("released")
        self._refused: set[str] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
                body = await reader.readexactly(int(length[1]) if length else 0)
                method, path, _ = head.split(b" ", 2)
                status, value = await self._respond(method.decode(), path.decode(), body)
                content = json.dumps(value).encode()
                retry = b"retry-after: 0.05\r\n" if status == 429 else b""
                line = b"HTTP/1.1 %d X\r\n%bcontent-length: %d\r\n\r\n" % (status, retry, len(content))
                writer.write(line + content)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def _respond(self, method: str, path: str, content: bytes) -> tuple[int, dict[str, Any]]:
        if method == "GET":
            return 200, {"status": "ok", "version": "1.2.3", "data": []}
        body = json.loads(content)
        text = _read_text(body)
        if text == "crash":
            os._exit(1)
        if match := re.fullmatch(r"status (\d+)", text):
            status = int(match[1])
            return status, {"error": {"message": f"as requested: {text}", "type": "x", "code": "requested"}}
        if text.startswith("busy") and text not in self._refused:
            self._refused.add(text)
            return 429, {"error": {"message": "Too busy.", "type": "rate_limit_error", "code": "busy"}}
        while text.startswith("held") and not self._released.exists():
            await asyncio.sleep(0.05)
        await asyncio.sleep(2 if text == "slow" else self.seconds)
        if body.get("max_tokens") != 1:  # Not a worker's probe.
            self.ledger.write(json.dumps({"model": body["model"], "text": text}) + "\n")
        return 200, _complete(path, body["model"], text)


def _read_text(body: dict[str, Any]) -> str:
    if "messages" in body:
        return str(body["messages"][-1]["content"])
    return str(body.get("prompt", body.get("input")))


def _complete(path: str, model: str, text: str) -> dict[str, Any]:
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    if path == "/v1/chat/completions":
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return {"id": "x", "object": "chat.completion", "model": model, "choices": [choice], "usage": usage}
    if path == "/v1/completions":
        choice = {"index": 0, "text": text, "finish_reason": "stop"}
        return {"id": "x", "object": "text_completion", "model": model, "choices": [choice], "usage": usage}
    if path == "/v1/embeddings":
        data = [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}]
        return {"object": "list", "model": model, "data": data, "usage": {"prompt_tokens": 3}}
    return {"id": "x", "object": "response", "model": model, "usage": {"input_tokens": 3, "output_tokens": 2}}


async def serve(ledger: Path, port: int, seconds: float) -> None:
    """Serve until the process ends."""
    engine = BatchEngine(ledger, seconds)
    server = await asyncio.start_server(engine.serve, "127.0.0.1", port, limit=16 * 1024 * 1024)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--ledger", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=0.0)
    options = parser.parse_args()
    asyncio.run(serve(options.ledger, options.port, options.seconds))
