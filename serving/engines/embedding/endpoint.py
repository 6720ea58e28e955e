"""POST /v1/embeddings: texts become token ids, then embeddings, then a response in OpenAI's shape."""

import asyncio
import base64
import contextlib
from typing import Any

import msgspec
import torch
from aiohttp import web

from serving.engines.embedding.inputs import tokenize_texts
from serving.engines.embedding.loop import EmbeddingLoop, EmbeddingWork
from serving.engines.embedding.model import EmbeddingModel, TokenizedText, normalize
from serving.engines.embedding.schemas import EmbeddingRequest
from serving.engines.openai_server.completions import find_served_model
from serving.engines.openai_server.edges import read_body
from serving.engines.openai_server.prompt_queue import PROMPT_QUEUE
from serving.engines.openai_server.schemas import parse_request
from serving.http.errors import EngineUnavailable, InternalError, InvalidRequest

MAX_WAITING_TEXTS = 16_384


async def create_embeddings(http: web.Request, loop: EmbeddingLoop, model: EmbeddingModel) -> web.Response:
    """Respond with the embedding of each text. Raises ApiError."""
    body = await read_body(http)
    request = parse_request(EmbeddingRequest, body)
    find_served_model(model.models, request.model)
    if request.dimensions is not None:
        check_dimensions(model, request.dimensions)
    if loop.waiting_count >= MAX_WAITING_TEXTS:
        raise EngineUnavailable(f"{loop.waiting_count} texts are waiting already. Try again later.")
    texts = await http.app[PROMPT_QUEUE].run(
        lambda worker: tokenize_texts(worker, model, request.texts), len(body)
    )
    embeddings_bd = await embed_texts(loop, texts)
    content = await asyncio.to_thread(encode_response, model, request, texts, embeddings_bd)
    return web.Response(body=content, content_type="application/json")


def check_dimensions(model: EmbeddingModel, dimensions: int) -> None:
    """Raise InvalidRequest for a number of dimensions that the model was not trained for."""
    name, sizes = model.served.name, model.matryoshka_sizes
    if not model.is_matryoshka:
        raise InvalidRequest(
            f"The model {name!r} does not declare Matryoshka embeddings, so that 'dimensions' cannot be set. "
            f"Leave it out: an embedding has {model.size}.",
            "dimensions",
        )
    if dimensions > model.size or (sizes and dimensions not in sizes):
        expected = ", ".join(map(str, sizes)) if sizes else f"1 to {model.size}"
        raise InvalidRequest(
            f"'dimensions' is {dimensions}; the model {name!r} supports {expected}.", "dimensions"
        )


async def embed_texts(loop: EmbeddingLoop, texts: list[TokenizedText]) -> torch.Tensor:
    """Return the embeddings (b, d); a cancelled request leaves the queue."""
    event_loop = asyncio.get_running_loop()
    result: asyncio.Future[torch.Tensor] = event_loop.create_future()

    def resolve(embeddings_bd: torch.Tensor) -> None:
        if not result.done():
            result.set_result(embeddings_bd)

    def finish(embeddings_bd: torch.Tensor) -> None:
        # The event loop is closed while the program stops.
        with contextlib.suppress(RuntimeError):
            event_loop.call_soon_threadsafe(resolve, embeddings_bd)

    work = EmbeddingWork(texts, finish)
    loop.submit(work)
    try:
        return await result
    except asyncio.CancelledError:
        work.cancelled = True
        raise


def encode_response(
    model: EmbeddingModel, request: EmbeddingRequest, texts: list[TokenizedText], embeddings_bd: torch.Tensor
) -> bytes:
    """Return the JSON of the response; raises InternalError for values that are not finite."""
    if request.dimensions is not None:
        embeddings_bd = normalize(embeddings_bd[:, : request.dimensions], model.recipe)
    if not bool(embeddings_bd.isfinite().all()):
        raise InternalError("An embedding has values that are not finite. Serve the model in float32.")
    values = encode_values(embeddings_bd, request.encoding_format == "base64")
    n_tokens = sum(len(text.ids) for text in texts)
    return msgspec.json.encode(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": value}
                for index, value in enumerate(values)
            ],
            "model": request.model,
            "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
        }
    )


def encode_values(embeddings_bd: torch.Tensor, as_base64: bool) -> list[Any]:
    """Return each embedding as a list of numbers, or as base64 of little-endian 32-bit floats."""
    if not as_base64:
        rows: list[Any] = embeddings_bd.tolist()
        return rows
    return [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in embeddings_bd.numpy()]
