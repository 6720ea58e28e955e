"""The routes of the engine's HTTP server."""

import asyncio
import importlib.metadata
import logging
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any

from aiohttp import web

from serving.engines.decoding.adapters import AdapterNotLoadable
from serving.engines.decoding.loop import GenerationLoop
from serving.engines.decoding.served import LoadedModel, ServedModel
from serving.engines.model_thread import ModelThread
from serving.engines.openai_server.completions import (
    STREAMING,
    create_chat_completion,
    create_completion,
    find_served_model,
)
from serving.engines.openai_server.edges import OWN_HOST, check_edges, read_body
from serving.engines.openai_server.prompt_queue import PROMPT_QUEUE, PromptQueue
from serving.engines.openai_server.responses.endpoint import create_response
from serving.engines.openai_server.schemas import LoadAdapterRequest, UnloadAdapterRequest, parse_request
from serving.engines.openai_server.tokens import detokenize_request, tokenize_request
from serving.http.errors import (
    ApiError,
    BodyTooLarge,
    EngineUnavailable,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    ModelNotServed,
    TaskNotServed,
    UnknownUrl,
)
from serving.http.limits import MAX_BODY_BYTES
from trainers.configs.engines import EngineTask

LOOP: web.AppKey[ModelThread[Any]] = web.AppKey("loop", ModelThread)
GENERATION: web.AppKey[GenerationLoop] = web.AppKey("generation", GenerationLoop)
TASK: web.AppKey[EngineTask] = web.AppKey("task", EngineTask)
SERVER_STATE: web.AppKey["EngineServerState"] = web.AppKey("state")
NUMERIC_PACKAGES = ("torch", "transformers", "peft", "mlx", "mlx-lm")
logger = logging.getLogger("tunesmith.engine")


class EngineServerState:
    """The state of the routes, apart from the generation loop; used in the event loop only."""

    def __init__(self) -> None:
        self.draining = False
        self.open_requests = 0
        self.loading: set[str] = set()


def make_app(loop: GenerationLoop, host: str) -> web.Application:
    """Create the application for a generation loop, whose model may still be loading."""
    app = make_task_app(EngineTask.generate, loop, host)
    app[GENERATION] = loop
    app.add_routes(
        [
            web.post("/v1/chat/completions", chat_completions),
            web.post("/v1/completions", completions),
            web.post("/v1/responses", responses),
            web.post("/v1/embeddings", refuse_task),
            web.post("/v1/load_lora_adapter", load_lora_adapter),
            web.post("/v1/unload_lora_adapter", unload_lora_adapter),
        ]
    )
    return app


def make_task_app(task: EngineTask, loop: ModelThread[Any], host: str) -> web.Application:
    """Create an application with the paths that do not depend on what the engine computes."""
    app = web.Application(middlewares=[handle_errors, check_edges], client_max_size=MAX_BODY_BYTES)
    app[OWN_HOST], app[TASK] = host, task
    app[LOOP], app[SERVER_STATE], app[PROMPT_QUEUE] = loop, EngineServerState(), PromptQueue()
    app.add_routes(
        [
            web.get("/health", health),
            web.get("/version", version),
            web.get("/v1/models", list_models),
            web.get("/v1/models/{name:.+}", get_model),
            web.post("/tokenize", tokenize),
            web.post("/detokenize", detokenize),
        ]
    )
    return app


async def health(request: web.Request) -> web.Response:
    """Respond with 200 if the model is loaded and the generation loop works, else 503."""
    loop, prompts = request.app[LOOP], request.app[PROMPT_QUEUE]
    ready = loop.healthy and not request.app[SERVER_STATE].draining
    counts = {
        "running": loop.running_count,
        "waiting": loop.waiting_count + prompts.waiting_count,
        "tokenizing": prompts.active_count,
    }
    return web.json_response(
        {"status": "ok" if ready else "unavailable", **counts}, status=200 if ready else 503
    )


async def version(request: web.Request) -> web.Response:
    """Return the versions on which completions depend, under vLLM's path."""
    loaded = [name for name in NUMERIC_PACKAGES if name.replace("-", "_") in sys.modules]
    versions = {name: importlib.metadata.version(name) for name in ("tunesmith", *loaded)}
    return web.json_response({"version": versions["tunesmith"], "packages": versions})


async def list_models(request: web.Request) -> web.Response:
    """List the base and its adapters, as vLLM does."""
    runner, task = get_runner(request), request.app[TASK]
    models = [view_model(runner, served, task) for served in runner.models.values()]
    return web.json_response({"object": "list", "data": models})


async def get_model(request: web.Request) -> web.Response:
    """Return the base or an adapter."""
    runner = get_runner(request)
    served = find_served_model(runner.models, request.match_info["name"])
    return web.json_response(view_model(runner, served, request.app[TASK]))


def view_model(runner: LoadedModel, served: ServedModel, task: EngineTask) -> dict[str, Any]:
    """Return a served model in OpenAI's shape, with the fields that vLLM adds, and the task."""
    return {
        "id": served.name,
        "object": "model",
        "created": 0,
        "owned_by": "tunesmith",
        "root": served.path,
        "parent": runner.served.name if served.adapter else None,
        "max_model_len": runner.max_model_len,
        "task": task,
    }


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """Complete a chat."""
    return await create_chat_completion(request, request.app[GENERATION], get_runner(request))


async def completions(request: web.Request) -> web.StreamResponse:
    """Complete or score a text."""
    return await create_completion(request, request.app[GENERATION], get_runner(request))


async def responses(request: web.Request) -> web.StreamResponse:
    """Complete a conversation in the format of OpenAI's Responses API."""
    return await create_response(request, request.app[GENERATION], get_runner(request))


async def refuse_task(request: web.Request) -> web.StreamResponse:
    """Refuse a path of the other task: a chat model's hidden states are not what a client expects."""
    raise TaskNotServed(
        get_runner(request).served.name, request.path, embeds=request.app[TASK] is EngineTask.embed
    )


async def tokenize(request: web.Request) -> web.Response:
    """Return the token ids of a text or a chat."""
    return web.json_response(await tokenize_request(request, get_runner(request)))


async def detokenize(request: web.Request) -> web.Response:
    """Return the text of token ids."""
    return web.json_response(await detokenize_request(request, get_runner(request)))


async def load_lora_adapter(request: web.Request) -> web.Response:
    """Load an adapter; a name in use is rejected."""
    runner, loading = get_runner(request), request.app[SERVER_STATE].loading
    body = parse_request(LoadAdapterRequest, await read_body(request))
    name = body.lora_name
    if name in runner.models or name in loading:
        raise InvalidRequest(
            f"The name {name!r} is in use; unload it first or choose another name.", "lora_name"
        )
    loading.add(name)
    try:
        command = request.app[GENERATION].execute(lambda model: model.load_adapter(name, body.lora_path))
        runner.models[name] = await command_result(command)
    except AdapterNotLoadable as error:
        raise InvalidRequest(str(error), "lora_path") from error
    finally:
        loading.discard(name)
    # vLLM's text.
    return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")


async def unload_lora_adapter(request: web.Request) -> web.Response:
    """Remove the name immediately, and free the weights after the last completion that uses them."""
    runner = get_runner(request)
    name = parse_request(UnloadAdapterRequest, await read_body(request)).lora_name
    served = runner.models.get(name)
    if served is None or served.adapter is None:
        raise ModelNotServed(name, [model.name for model in runner.models.values() if model.adapter])
    del runner.models[name]
    command = request.app[GENERATION].execute(lambda model: model.unload_adapter(served), after=served)
    await command_result(command)
    return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")


def get_runner(request: web.Request) -> Any:
    """Return the loaded model. Raises EngineUnavailable while it loads, and once the engine is stopping."""
    runner = request.app[LOOP].runner
    if runner is None or request.app[SERVER_STATE].draining:
        raise EngineUnavailable(
            "The model is still loading." if runner is None else "The engine is stopping."
        )
    return runner


async def command_result(command: Future[Any]) -> Any:
    """Await a command's result; the command runs to its end even if the client disconnects."""
    return await asyncio.shield(asyncio.wrap_future(command))


@web.middleware
async def handle_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Count open requests, and convert every error to OpenAI's format."""
    state = request.app[SERVER_STATE]
    state.open_requests += 1
    try:
        return await handler(request)
    except ApiError as error:
        return error_response(error)
    except web.HTTPRequestEntityTooLarge:
        return error_response(BodyTooLarge(MAX_BODY_BYTES))
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        return error_response(MethodNotAllowed(request.path, request.method, allowed))
    except web.HTTPException as error:
        unknown = UnknownUrl(f"{request.method} {request.path} does not exist.")
        unknown.status = error.status
        return error_response(unknown)
    except ConnectionResetError:
        raise
    except Exception:
        if STREAMING in request:
            # The status has been sent already; only a broken connection can still report the failure.
            raise
        logger.exception("%s %s failed", request.method, request.path)
        return error_response(
            InternalError("The engine failed on this request; its log contains the traceback.")
        )
    finally:
        state.open_requests -= 1


def error_response(error: ApiError) -> web.Response:
    """Convert an error to a plain response."""
    headers = {name.decode(): value.decode() for name, value in error.headers()}
    return web.Response(status=error.status, body=error.body(), headers=headers)
