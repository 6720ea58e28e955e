"""A stand-in for SGLang's server that implements what our engine calls, in a thread of the tests."""

import asyncio
import threading
from typing import Any

from aiohttp import web


class SglangStandIn:
    """Serves `base` and loaded adapters, and any other name with the base, on a free port."""

    def __init__(self) -> None:
        self.adapters: dict[str, str] = {}
        self.served: list[str] = []
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.url = asyncio.run_coroutine_threadsafe(self._start(), self.loop).result(60)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self.runner.cleanup(), self.loop).result(60)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(60)
        self.loop.close()

    async def _start(self) -> str:
        app = web.Application()
        app.router.add_get("/v1/models", self.models)
        paths = ("load_lora_adapter", "unload_lora_adapter", "tokenize", "generate")
        app.add_routes([web.post(f"/{path}", getattr(self, path)) for path in paths])
        app.router.add_post("/v1/completions", self.completions)
        self.runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self.runner.addresses[0][1]}"

    async def models(self, request: web.Request) -> web.Response:
        cards: list[dict[str, Any]] = [{"id": "base", "root": "base", "parent": None}]
        cards += [{"id": name, "root": path, "parent": "base"} for name, path in self.adapters.items()]
        return web.json_response({"object": "list", "data": cards})

    async def load_lora_adapter(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body["lora_name"] in self.adapters:
            return self._error(f"LoRA adapter {body['lora_name']} is already loaded.")
        self.adapters[body["lora_name"]] = body["lora_path"]
        return web.json_response({"success": True, "error_message": "", "loaded_adapters": self.adapters})

    async def unload_lora_adapter(self, request: web.Request) -> web.Response:
        name = (await request.json())["lora_name"]
        if self.adapters.pop(name, None) is None:
            return self._error(f"LoRA adapter {name} is not loaded.")
        return web.json_response({"success": True, "error_message": "", "loaded_adapters": self.adapters})

    async def tokenize(self, request: web.Request) -> web.Response:
        text = (await request.json())["messages"][0]["content"]
        return web.json_response({"tokens": list(text.encode()), "count": len(text), "max_model_len": 512})

    async def completions(self, request: web.Request) -> web.Response:
        name = (await request.json())["model"]
        _, _, adapter = name.partition(":")
        self.served.append(adapter or "base")
        return web.json_response({"choices": [{"text": "1", "index": 0, "finish_reason": "length"}]})

    async def generate(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.served.append(body["lora_path"] or "base")
        first, *others = body["input_ids"]
        scored = [[None, first, None], *([-0.5, token_id, None] for token_id in others)]
        return web.json_response({"text": "1", "meta_info": {"input_token_logprobs": scored}})

    @staticmethod
    def _error(message: str) -> web.Response:
        return web.json_response({"success": False, "error_message": message}, status=400)
