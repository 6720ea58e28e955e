"""Requests become rows of the generation loop, and their pieces become plain answers or streams."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from serving.engines.decoding.base import ModelRunner
from serving.engines.decoding.loop import GenerationLoop
from serving.engines.decoding.sampling import SamplingParams
from serving.engines.decoding.sequence import OutputChunk, SequenceParams, SequenceState
from serving.engines.decoding.served import ServedModel
from serving.engines.openai_server.prompts import check_token_ids, encode_prompts, render_chat
from serving.engines.openai_server.response_shapes import (
    ChatFormat,
    ChoicesWriter,
    CompletionFormat,
    ResponseEnvelope,
    ResponseWriter,
    TokenUsage,
    encode_json,
)
from serving.engines.openai_server.schemas import (
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    parse_request,
)
from serving.http.errors import ContextLengthExceeded, EngineUnavailable, ModelNotServed

MOST_PENDING_ROWS = 1024
SAMPLING_OPTIONS = (
    "temperature",
    "top_p",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)
# Set on a request once the status of its stream has left.
STREAMING = "streaming"

Pieces = asyncio.Queue[tuple[int, OutputChunk]]


async def create_chat_completion(
    http: web.Request, loop: GenerationLoop, base: ModelRunner
) -> web.StreamResponse:
    """POST /v1/chat/completions; raises ApiError before the answer has begun."""
    request = parse_request(ChatRequest, await http.read())
    served = find_served_model(base, request.model)
    prompt = await asyncio.to_thread(render_chat, served, request.messages, request)
    asks = make_sequence_params(base, served, request, [prompt], request.alternatives)
    shape, envelope = ChatFormat(served.tokenizer), ResponseEnvelope("chatcmpl", request.model)
    told = ChoicesWriter(shape, envelope, TokenUsage(len(prompt)), len(asks), request.include_usage)
    return await send_response(http, loop, base, asks, told)


async def create_completion(http: web.Request, loop: GenerationLoop, base: ModelRunner) -> web.StreamResponse:
    """POST /v1/completions; raises ApiError before the answer has begun."""
    request = parse_request(CompletionRequest, await http.read())
    served = find_served_model(base, request.model)
    special = request.add_special_tokens is not False
    prompts = await asyncio.to_thread(encode_prompts, served, request.prompts, special, base.vocabulary_size)
    echo, scored = bool(request.echo), request.logprobs is not None
    asks = make_sequence_params(base, served, request, prompts, request.logprobs, scored=echo and scored)
    shape = CompletionFormat(served.tokenizer, prompts, echo, scored, choices_each=request.n or 1)
    usage = TokenUsage(sum(len(prompt) for prompt in prompts))
    told = ChoicesWriter(
        shape, ResponseEnvelope("cmpl", request.model), usage, len(asks), request.include_usage
    )
    return await send_response(http, loop, base, asks, told)


def find_served_model(base: ModelRunner, name: str) -> ServedModel:
    """What a model name stands for; raises ModelNotFound."""
    if name not in base.names:
        raise ModelNotServed(name, base.names)
    return base.names[name]


def make_sequence_params(
    base: ModelRunner,
    served: ServedModel,
    request: GenerationRequest,
    prompts: list[list[int]],
    alternatives: int | None,
    scored: bool = False,
) -> list[SequenceParams]:
    """One answer to generate for each prompt and choice; raises ContextLengthExceeded."""
    sampling = sampling_of(request, base.vocabulary_size, alternatives)
    seed = random.getrandbits(63) if request.seed is None else request.seed
    wishes: dict[str, Any] = {
        "stop_token_ids": frozenset(request.stop_token_ids or ()),
        "min_tokens": request.min_tokens or 0,
        "ignore_eos": bool(request.ignore_eos),
        "skip_special_tokens": request.skip_special_tokens is not False,
        "prompt_logprobs": scored,
        "streaming": bool(request.stream),
    }
    return [
        # Choices of one prompt differ by their seed; equal prompts of one request draw alike.
        SequenceParams(
            served,
            prompt,
            sampling,
            room(base, request, prompt),
            choice_seed(seed, choice),
            request.stops,
            **wishes,
        )
        for prompt in prompts
        for choice in range(request.n or 1)
    ]


def sampling_of(request: GenerationRequest, vocabulary_size: int, alternatives: int | None) -> SamplingParams:
    """How tokens are to be chosen; raises InvalidRequest for token ids that the model does not have."""
    biases = {int(token): bias for token, bias in (request.logit_bias or {}).items()}
    for param, ids in {"logit_bias": list(biases), "stop_token_ids": request.stop_token_ids}.items():
        if ids:
            check_token_ids(ids, vocabulary_size, param)
    given = {name: value for name in SAMPLING_OPTIONS if (value := getattr(request, name)) is not None}
    return SamplingParams(**given, top_k=max(request.top_k or 0, 0), logit_bias=biases, logprobs=alternatives)


def room(base: ModelRunner, request: GenerationRequest, prompt: list[int]) -> int:
    """Tokens that the answer may have; raises ContextLengthExceeded."""
    most = request.most_tokens
    left = base.max_model_len - len(prompt)
    if left < (1 if most is None else most):
        answer_tokens = "an answer" if most is None else f"{most} tokens of answer"
        raise ContextLengthExceeded(
            f"The context holds {base.max_model_len} tokens, and the prompt has {len(prompt)}, which leaves "
            f"no room for {answer_tokens}; shorten the prompt or ask for fewer tokens.",
            request.length_param if left > 0 else request.prompt_param,
        )
    return left if most is None else most


def choice_seed(seed: int, choice: int) -> int:
    """A seed within the range that torch takes."""
    return (seed + choice) % 2**63


async def send_response(
    http: web.Request,
    loop: GenerationLoop,
    base: ModelRunner,
    asks: list[SequenceParams],
    told: ResponseWriter,
) -> web.StreamResponse:
    """Generate, and answer in one object or as a stream."""
    async with generating(loop, base, asks) as pieces:
        if asks[0].streaming:
            return await stream(http, told, pieces, len(asks))
        whole = told.whole(await collect(pieces, len(asks)))
        return web.Response(body=encode_json(whole), content_type="application/json")


@asynccontextmanager
async def generating(
    loop: GenerationLoop, base: ModelRunner, asks: list[SequenceParams]
) -> AsyncIterator[Pieces]:
    """Queue one row for each ask; rows that are not done when the block is left are given up."""
    served = asks[0].served
    # The adapter may have gone while the prompt was being read. Nothing is awaited between this check and the
    # submission, so an unloading that comes later finds the rows and waits for them.
    if base.names.get(served.name) is not served:
        raise ModelNotServed(served.name, base.names)
    if loop.pending + len(asks) > MOST_PENDING_ROWS:
        raise EngineUnavailable(f"{loop.pending} answers are waiting already; try again later.")
    pieces: Pieces = asyncio.Queue()
    rows = [SequenceState(ask, emitter(pieces, index)) for index, ask in enumerate(asks)]
    for row in rows:
        loop.submit(row)
    try:
        yield pieces
    finally:
        for row in rows:
            row.cancelled = True


def emitter(pieces: Pieces, index: int) -> Callable[[OutputChunk], None]:
    """A function by which the generation thread hands over a piece of one choice."""
    events = asyncio.get_running_loop()

    def emit(piece: OutputChunk) -> None:
        events.call_soon_threadsafe(pieces.put_nowait, (index, piece))

    return emit


async def collect(pieces: Pieces, count: int) -> list[list[OutputChunk]]:
    """All pieces of each ask."""
    gathered: list[list[OutputChunk]] = [[] for _ in range(count)]
    async for index, piece in until_finished(pieces, count):
        gathered[index].append(piece)
    return gathered


async def stream(http: web.Request, told: ResponseWriter, pieces: Pieces, count: int) -> web.StreamResponse:
    """Server-sent events as the pieces come."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    http[STREAMING] = True
    await response.prepare(http)
    async for events in parts(told, pieces, count):
        if events:
            await response.write(events)
    return response


async def parts(told: ResponseWriter, pieces: Pieces, count: int) -> AsyncIterator[bytes]:
    """What is to be written, from the stream's opening to its closing."""
    yield told.opening()
    async for index, piece in until_finished(pieces, count):
        yield told.more(index, piece)
    yield told.closing()


async def until_finished(pieces: Pieces, count: int) -> AsyncIterator[tuple[int, OutputChunk]]:
    """Pieces as they come, until every ask has had its last."""
    while count:
        index, piece = await pieces.get()
        count -= piece.finish is not None
        yield index, piece
