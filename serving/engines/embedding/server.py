"""The HTTP server of an engine that embeds."""

from functools import partial

from aiohttp import web

from serving.engines.embedding.endpoint import create_embeddings
from serving.engines.embedding.loop import EmbeddingLoop
from serving.engines.embedding.model import load_embedding_model
from serving.engines.openai_server.program import TaskServer
from serving.engines.openai_server.server import get_runner, make_task_app, refuse_task
from trainers.configs.engines import EngineOptions, EngineTask, Pooling

EMBEDDING: web.AppKey[EmbeddingLoop] = web.AppKey("embedding", EmbeddingLoop)
GENERATION_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
# Texts of a batch, which is bounded by its tokens first.
DEFAULT_BATCH_SIZE = 256


def prepare_embeddings(model: str, name: str, options: EngineOptions, pooling: Pooling | None) -> TaskServer:
    """Return the thread of an embedding model that is not loaded yet, and the application for it."""
    load = partial(load_embedding_model, model, name, options, pooling)
    loop = EmbeddingLoop(load, options.max_batch_size or DEFAULT_BATCH_SIZE)
    return TaskServer(loop, partial(make_embedding_app, loop))


def make_embedding_app(loop: EmbeddingLoop, host: str) -> web.Application:
    """Create the application for an embedding loop, whose model may still be loading."""
    app = make_task_app(EngineTask.embed, loop, host)
    app[EMBEDDING] = loop
    app.add_routes(
        [
            web.post("/v1/embeddings", embeddings),
            *(web.post(path, refuse_task) for path in GENERATION_PATHS),
        ]
    )
    return app


async def embeddings(request: web.Request) -> web.StreamResponse:
    """Embed texts."""
    return await create_embeddings(request, request.app[EMBEDDING], get_runner(request))
