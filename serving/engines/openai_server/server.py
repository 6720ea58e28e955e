"""The engine's HTTP side: its routes, and what it says of itself."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from serving.engines.decoding.adapters import AdapterNotLoadable
from serving.engines.decoding.base import ModelRunner
from serving.engines.decoding.loop import GenerationLoop
from serving.engines.openai_server.completions import STREAMING, create_chat_completion, create_completion
from serving.engines.openai_server.responses import create_response
from serving.engines.openai_server.schemas import LoadAdapterRequest, UnloadAdapterRequest, parse_request
from serving.engines.openai_server.tokens import detokenize_request, tokenize_request
from serving.http.errors import (
    ApiError,
    BodyTooLarge,
    EngineUnavailable,
    InternalError,
    InvalidRequest,
    ModelNotServed,
    UnknownUrl,
)

MOST_BODY_BYTES = 8 * 1024 * 1024
LOOP: web.AppKey[GenerationLoop] = web.AppKey("loop", GenerationLoop)
SERVER_STATE: web.AppKey["ServerState"] = web.AppKey("state")
logger = logging.getLogger("tunesmith.engine")


class ServerState:
    """What the routes share beside the generation loop; used in the event loop only."""

    def __init__(self) -> None:
        self.draining = False
        self.open_requests = 0
        self.loading: set[str] = set()


def make_app(loop: GenerationLoop) -> web.Application:
    """The engine's routes over a generation loop that may still be loading."""
    app = web.Application(middlewares=[openai_errors], client_max_size=MOST_BODY_BYTES)
    app[LOOP], app[SERVER_STATE] = loop, ServerState()
    app.add_routes(
        [
            web.get("/health", health),
            web.get("/v1/models", list_models),
            web.post("/v1/chat/completions", chat_completions),
            web.post("/v1/completions", completions),
            web.post("/v1/responses", responses),
            web.post("/v1/embeddings", embeddings),
            web.post("/tokenize", tokenize),
            web.post("/detokenize", detokenize),
            web.post("/v1/load_lora_adapter", load_lora_adapter),
            web.post("/v1/unload_lora_adapter", unload_lora_adapter),
        ]
    )
    return app


async def health(request: web.Request) -> web.Response:
    """200 only when the model is loaded and the generation loop is alive."""
    loop = request.app[LOOP]
    ready = loop.healthy and not request.app[SERVER_STATE].draining
    counts = {"running": loop.running, "waiting": loop.pending}
    return web.json_response(
        {"status": "ok" if ready else "unavailable", **counts}, status=200 if ready else 503
    )


async def list_models(request: web.Request) -> web.Response:
    """The base and its adapters, as vLLM lists them."""
    base = ready_base(request)
    models = [
        {"id": served.name, "object": "model", "created": 0, "owned_by": "tunesmith", "root": served.path}
        | {"parent": base.served.name if served.adapter else None, "max_model_len": base.max_model_len}
        for served in base.names.values()
    ]
    return web.json_response({"object": "list", "data": models})


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """Answer a chat."""
    return await create_chat_completion(request, request.app[LOOP], ready_base(request))


async def completions(request: web.Request) -> web.StreamResponse:
    """Continue a text, or score it."""
    return await create_completion(request, request.app[LOOP], ready_base(request))


async def responses(request: web.Request) -> web.StreamResponse:
    """Answer a conversation in the form of OpenAI's newer API."""
    return await create_response(request, request.app[LOOP], ready_base(request))


async def embeddings(request: web.Request) -> web.StreamResponse:
    """Refused: the hidden states of a chat model are not the embeddings that a client expects."""
    raise UnknownUrl("This engine has no embeddings; serve an embedding model with vllm.")


async def tokenize(request: web.Request) -> web.Response:
    """The token ids of a text or a chat."""
    return web.json_response(await tokenize_request(ready_base(request), await request.read()))


async def detokenize(request: web.Request) -> web.Response:
    """The text of token ids."""
    return web.json_response(await detokenize_request(ready_base(request), await request.read()))


async def load_lora_adapter(request: web.Request) -> web.Response:
    """Put another adapter beside the base; a name that is taken is refused."""
    base, loading = ready_base(request), request.app[SERVER_STATE].loading
    asked = parse_request(LoadAdapterRequest, await request.read())
    name = asked.lora_name
    if name in base.names or name in loading:
        raise InvalidRequest(f"The name {name!r} is taken; unload it first or choose another.", "lora_name")
    loading.add(name)
    try:
        order = request.app[LOOP].order(lambda model: model.load_adapter(name, asked.lora_path))
        base.names[name] = await finished(order)
    except AdapterNotLoadable as fault:
        raise InvalidRequest(str(fault), "lora_path") from fault
    finally:
        loading.discard(name)
    return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")


async def unload_lora_adapter(request: web.Request) -> web.Response:
    """Take the name away at once, and free the weights when the last answer with them has ended."""
    base = ready_base(request)
    name = parse_request(UnloadAdapterRequest, await request.read()).lora_name
    served = base.names.get(name)
    if served is None or served.adapter is None:
        raise ModelNotServed(name, [known.name for known in base.names.values() if known.adapter])
    del base.names[name]
    await finished(request.app[LOOP].order(lambda model: model.unload_adapter(served), unused=served))
    return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")


def ready_base(request: web.Request) -> ModelRunner:
    """The loaded model; raises EngineUnavailable while it loads and once the engine is stopping."""
    base = request.app[LOOP].base
    if base is None or request.app[SERVER_STATE].draining:
        raise EngineUnavailable("The model is still loading." if base is None else "The engine is stopping.")
    return base


async def finished(order: Any) -> Any:
    """The result of an order; it is carried out even if the client leaves meanwhile."""
    return await asyncio.shield(asyncio.wrap_future(order))


@web.middleware
async def openai_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Count open requests, and turn every error into OpenAI's shape."""
    state = request.app[SERVER_STATE]
    state.open_requests += 1
    try:
        return await handler(request)
    except ApiError as error:
        return error_response(error)
    except web.HTTPRequestEntityTooLarge:
        return error_response(
            BodyTooLarge(f"The body is larger than {MOST_BODY_BYTES} bytes; send less text.")
        )
    except web.HTTPException as error:
        unknown = UnknownUrl(f"{request.method} {request.path} is not served here.")
        unknown.status = error.status
        return error_response(unknown)
    except ConnectionResetError:
        raise
    except Exception:
        if STREAMING in request:
            # Its status has left already; only a broken connection can still tell that something failed.
            raise
        logger.exception("%s %s failed", request.method, request.path)
        return error_response(InternalError("The engine failed on this request; its log says why."))
    finally:
        state.open_requests -= 1


def error_response(error: ApiError) -> web.Response:
    """An error as a plain answer."""
    wait = error.retry_after_seconds
    headers = {} if wait is None else {"Retry-After": str(wait)}
    return web.Response(
        status=error.status, body=error.body(), content_type="application/json", headers=headers
    )
