"""A fake engine in a thread of the test process. The model's name selects its timing and failures."""

import asyncio
import json
import threading
from collections import Counter
from typing import Any

from aiohttp import web

PATHS = ("/v1/chat/completions", "/v1/responses", "/v1/embeddings")
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"word "}}]}\n\n'
ERROR = b'data: {"error": {"message": "EngineCore encountered an issue."}}\n\n'


class FakeEngine:
    """Serves on a free port of 127.0.0.1 until `close`; each method below `respond` is a model."""

    def __init__(self) -> None:
        self.request_counts: Counter[str] = Counter()
        self.open_counts: Counter[str] = Counter()
        self.n_flood_events = 0
        self.released = threading.Event()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.peers: set[tuple[str, int]] = set()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.port = asyncio.run_coroutine_threadsafe(self._start(), self.loop).result(60)
        self.url = f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self.runner.cleanup(), self.loop).result(60)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(60)
        self.loop.close()

    async def _start(self) -> int:
        app = web.Application()
        for path in PATHS:
            app.router.add_post(path, self.respond)
        self.runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        port: int = self.runner.addresses[0][1]
        return port

    async def respond(self, request: web.Request) -> web.StreamResponse:
        data = await request.json()
        model = data["model"]
        self.bodies.append(data)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        assert request.transport is not None
        self.peers.add(request.transport.get_extra_info("peername"))
        self.request_counts[model] += 1
        self.open_counts[model] += 1
        try:
            response: web.StreamResponse = await getattr(self, model.replace("-", "_"))(request)
            return response
        finally:
            self.open_counts[model] -= 1

    async def busy(self, request: web.Request) -> web.Response:
        error = {"error": {"message": "full", "type": "server_error", "param": None, "code": "full"}}
        return web.json_response(error, status=429, headers={"Retry-After": "7"})

    async def broken(self, request: web.Request) -> web.Response:
        return web.json_response({"error": {"message": "out of memory"}}, status=500)

    async def unknown_path(self, request: web.Request) -> web.Response:
        """Return the web framework's 404, as vLLM does for embeddings of a chat model."""
        return web.json_response({"detail": "Not Found"}, status=404)

    async def flaky(self, request: web.Request) -> web.Response:
        """Abort every odd request."""
        if self.request_counts["flaky"] % 2:
            abort(request)
        return web.json_response({"fine": True})

    async def dead(self, request: web.Request) -> web.Response:
        """Abort every request."""
        abort(request)
        return web.Response()

    async def plain(self, request: web.Request) -> web.Response:
        usage = {"prompt_tokens": 3, "completion_tokens": 5}
        return web.json_response({"text": '"usage": {"prompt_tokens": 9}', "usage": usage})

    async def scored(self, request: web.Request) -> web.Response:
        """Report the prompt after the usage, as vLLM does for prompt_logprobs and return_token_ids."""
        usage = {"prompt_tokens": 3, "completion_tokens": 5}
        prompt = [{"1": {"decoded_token": "usage"}}] * 500
        return web.json_response({"text": "x", "usage": usage, "prompt_logprobs": prompt})

    async def usage(self, request: web.Request) -> web.StreamResponse:
        """Report the token counts of the stream if the request asks for them."""
        options = (await request.json()).get("stream_options") or {}
        response = await self._stream(request)
        await response.write(EVENT)
        if options.get("include_usage"):
            tokens = {"prompt_tokens": 3, "completion_tokens": 5}
            await response.write(f"data: {json.dumps({'choices': [], 'usage': tokens})}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response

    async def usage_cut(self, request: web.Request) -> web.StreamResponse:
        """Abort between the token counts and [DONE]."""
        response = await self._stream(request)
        tokens = {"prompt_tokens": 3, "completion_tokens": 5}
        usage = f"data: {json.dumps({'choices': [], 'usage': tokens})}\n\n".encode()
        await response.write(EVENT + usage)
        await asyncio.sleep(0.1)
        abort(request)
        return response

    async def uncounted(self, request: web.Request) -> web.Response:
        """Respond without token counts, with 400 characters."""
        return web.json_response("a" * 398)

    async def flood(self, request: web.Request) -> web.StreamResponse:
        """Send forty megabytes as fast as the client reads."""
        response = await self._stream(request)
        for _ in range(40):
            await response.write(b'data: "' + b"a" * 1_000_000 + b'"\n\n')
            self.n_flood_events += 1
        await response.write(b"data: [DONE]\n\n")
        return response

    async def thinking(self, request: web.Request) -> web.Response:
        # Longer than any test waits for the end of the request.
        await asyncio.sleep(1000)
        return web.Response()

    async def endless(self, request: web.Request) -> web.StreamResponse:
        response = await self._stream(request)
        while True:
            await response.write(EVENT)
            await asyncio.sleep(0.05)

    async def cut(self, request: web.Request) -> web.StreamResponse:
        """Abort in the middle of an event."""
        response = await self._stream(request)
        await response.write(EVENT + EVENT[:20])
        await asyncio.sleep(0.1)
        abort(request)
        return response

    async def no_done(self, request: web.Request) -> web.StreamResponse:
        """End without [DONE], which the text contains."""
        response = await self._stream(request)
        await response.write(EVENT.replace(b"word", b"data: [DONE]"))
        return response

    async def abort_after_done(self, request: web.Request) -> web.StreamResponse:
        """Send everything, including [DONE], and abort instead of ending the response."""
        response = await self._stream(request)
        await response.write(EVENT + b"data: [DONE]\n\n")
        await asyncio.sleep(0.1)
        abort(request)
        return response

    async def error_mid_stream(self, request: web.Request) -> web.StreamResponse:
        """Send an error in the middle of the stream and then [DONE], as vLLM does."""
        response = await self._stream(request)
        for event in (EVENT, ERROR):
            await response.write(event)
            await asyncio.sleep(0.1)
        await response.write(b"data: [DONE]\n\n")
        return response

    async def error_first(self, request: web.Request) -> web.StreamResponse:
        """Send an error as the first event."""
        response = await self._stream(request)
        await response.write(ERROR + b"data: [DONE]\n\n")
        return response

    async def slow(self, request: web.Request) -> web.StreamResponse:
        """Send ten events over half a second, each split in two writes."""
        response = await self._stream(request)
        for _ in range(10):
            await response.write(EVENT[:33])
            await asyncio.sleep(0.05)
            await response.write(EVENT[33:])
        await response.write(b"data: [DONE]\n\n")
        return response

    async def held(self, request: web.Request) -> web.StreamResponse:
        """Send an event, each of nine others in two writes once the test releases them, and [DONE]."""
        response = await self._stream(request)
        await response.write(EVENT)
        while not self.released.is_set():
            await asyncio.sleep(0.01)
        for _ in range(9):
            await response.write(EVENT[:33])
            await asyncio.sleep(0.01)
            await response.write(EVENT[33:])
        await response.write(b"data: [DONE]\n\n")
        return response

    async def response(self, request: web.Request) -> web.StreamResponse:
        """Send a response with two text events and a last event in two writes."""
        response = await self._stream(request)
        for number, text in enumerate(("one ", "event: response.completed")):
            await response.write(response_event("response.output_text.delta", number, delta=text))
        usage = {"input_tokens": 3, "output_tokens": 5, "total_tokens": 8}
        last = response_event("response.completed", 2, response={"usage": usage})
        name, data = last.split(b"\n", 1)
        await response.write(name + b"\n")
        await asyncio.sleep(0.1)
        await response.write(data)
        return response

    async def partial_response(self, request: web.Request) -> web.StreamResponse:
        """Send a response that is complete for HTTP but lacks its last event."""
        response = await self._stream(request)
        await response.write(
            response_event("response.output_text.delta", 7, delta="event: response.completed")
        )
        return response

    async def cut_plain(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b'{"half":')
        await asyncio.sleep(0.1)
        abort(request)
        return response

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        return response


def response_event(kind: str, number: int, **data: Any) -> bytes:
    """Return an event of the Responses API."""
    body = json.dumps({"type": kind, "sequence_number": number, **data})
    return f"event: {kind}\ndata: {body}\n\n".encode()


def abort(request: web.Request) -> None:
    """Close the connection at once."""
    assert request.transport is not None
    request.transport.abort()
