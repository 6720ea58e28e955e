"""Generation requests: they become sequences, whose chunks become plain responses or streams."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Mapping

from aiohttp import web

from serving.engines.decoding.base import ModelRunner
from serving.engines.decoding.loop import GenerationLoop
from serving.engines.decoding.sampling import SamplingParams
from serving.engines.decoding.sequence import OutputChunk, SequenceParams, SequenceState
from serving.engines.decoding.served import ServedModel
from serving.engines.openai_server.chat_format import ChatFormat
from serving.engines.openai_server.edges import read_body
from serving.engines.openai_server.prompt_queue import PROMPT_QUEUE, PromptWorker
from serving.engines.openai_server.prompts import (
    chat_token_ids,
    check_token_ids,
    encode_prompts,
    prompt_too_long,
    refuse_long_prompts,
)
from serving.engines.openai_server.response_shapes import (
    ChoicesWriter,
    CompletionFormat,
    ResponseEnvelope,
    ResponseWriter,
    TokenUsage,
    encode_json,
)
from serving.engines.openai_server.schemas import (
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    TemplateOptions,
    parse_request,
)
from serving.engines.structured.output import FREE_OUTPUT, OutputPlan, OutputRequest, plan_output
from serving.http.errors import EngineUnavailable, GenerationFailed, MaxTokensTooLarge, ModelNotServed

MAX_WAITING_SEQUENCES = 1024
SAMPLING_PARAMETERS = (
    "temperature",
    "top_p",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)
# Set on a request once the status of its stream has been sent.
STREAMING = "streaming"

# Chunks of all sequences of a request, each with the index of its sequence.
ChunkQueue = asyncio.Queue[tuple[int, OutputChunk]]


async def create_chat_completion(
    http: web.Request, loop: GenerationLoop, runner: ModelRunner
) -> web.StreamResponse:
    """Respond to POST /v1/chat/completions. Raises ApiError before the response has begun."""
    body = await read_body(http)
    request = parse_request(ChatRequest, body)
    served = find_served_model(runner.models, request.model)
    check_room(loop, request.n or 1)
    prompt_ids, plan = await http.app[PROMPT_QUEUE].run(
        lambda worker: prepare_chat(
            worker, runner, served, request, request.messages, request.output, request.prompt_param
        ),
        len(body),
    )
    sequences = make_sequence_params(runner, served, request, [prompt_ids], request.n_logprobs, plan=plan)
    writer = ChoicesWriter(
        ChatFormat(served.tokenizer, plan),
        ResponseEnvelope("chatcmpl", request.model),
        TokenUsage(len(prompt_ids)),
        len(sequences),
        request.include_usage,
    )
    return await send_response(http, loop, runner, sequences, writer)


async def create_completion(
    http: web.Request, loop: GenerationLoop, runner: ModelRunner
) -> web.StreamResponse:
    """Respond to POST /v1/completions. Raises ApiError before the response has begun."""
    body = await read_body(http)
    request = parse_request(CompletionRequest, body)
    served = find_served_model(runner.models, request.model)
    refuse_long_prompts(served, runner.max_model_len, request.prompts)
    check_room(loop, len(request.prompts) * (request.n or 1))
    special = request.add_special_tokens is not False
    prompts = await http.app[PROMPT_QUEUE].run(
        lambda worker: encode_prompts(
            worker, served, runner.max_model_len, request.prompts, special, runner.vocabulary_size
        ),
        len(body),
    )
    echo, scored = bool(request.echo), request.logprobs is not None
    sequences = make_sequence_params(
        runner, served, request, prompts, request.logprobs, score_prompts=echo and scored
    )
    writer = ChoicesWriter(
        CompletionFormat(
            served.tokenizer, prompts, echo, scored, request.n or 1, bool(request.return_token_ids)
        ),
        ResponseEnvelope("cmpl", request.model),
        TokenUsage(sum(len(ids) for ids in prompts)),
        len(sequences),
        request.include_usage,
    )
    return await send_response(http, loop, runner, sequences, writer)


def prepare_chat(
    worker: PromptWorker,
    runner: ModelRunner,
    served: ServedModel,
    options: TemplateOptions,
    messages: list[ChatMessage],
    output: OutputRequest,
    param: str,
) -> tuple[list[int], OutputPlan]:
    """Return the token ids of a chat, and how its completions are constrained and read. Raises ApiError."""
    prompt_ids = chat_token_ids(
        worker, served, runner.max_model_len, messages, options, param, output.definitions
    )
    return prompt_ids, plan_output(served, runner.vocabulary_size, runner.options, output)


def find_served_model(models: Mapping[str, ServedModel], name: str) -> ServedModel:
    """Return the model with this name in requests. Raises ModelNotServed."""
    if name not in models:
        raise ModelNotServed(name, models)
    return models[name]


def make_sequence_params(
    runner: ModelRunner,
    served: ServedModel,
    request: GenerationRequest,
    prompts: list[list[int]],
    n_logprobs: int | None,
    score_prompts: bool = False,
    plan: OutputPlan = FREE_OUTPUT,
) -> list[SequenceParams]:
    """Return the parameters of each choice of each prompt.

    Raises:
        ContextLengthExceeded: A prompt and its completion do not fit the context.
        InvalidRequest: A parameter contains token ids that the model does not have.
    """
    sampling = sampling_params(request, runner.vocabulary_size, n_logprobs)
    seed = random.getrandbits(63) if request.seed is None else request.seed
    return [
        SequenceParams(
            served,
            prompt_ids,
            sampling,
            max_tokens=completion_limit(runner, request, prompt_ids),
            # Choices of one prompt differ by their seed; equal prompts of one request sample alike. torch
            # accepts seeds below 2**63.
            seed=(seed + choice) % 2**63,
            stops=request.stops,
            stop_token_ids=frozenset(request.stop_token_ids or ()),
            min_tokens=request.min_tokens or 0,
            ignore_eos=bool(request.ignore_eos),
            skip_special_tokens=request.skip_special_tokens is not False and not plan.shows_special_tokens,
            prompt_logprobs=score_prompts,
            stream=bool(request.stream),
            constraint=plan.constraint,
        )
        for prompt_ids in prompts
        for choice in range(request.n or 1)
    ]


def sampling_params(
    request: GenerationRequest, vocabulary_size: int, n_logprobs: int | None
) -> SamplingParams:
    """Return the sampling parameters. Raises InvalidRequest for token ids that the model does not have."""
    biases = {int(token): bias for token, bias in (request.logit_bias or {}).items()}
    for param, ids in {"logit_bias": list(biases), "stop_token_ids": request.stop_token_ids}.items():
        if ids:
            check_token_ids(ids, vocabulary_size, param)
    given = {name: value for name in SAMPLING_PARAMETERS if (value := getattr(request, name)) is not None}
    return SamplingParams(**given, top_k=max(request.top_k or 0, 0), logit_bias=biases, logprobs=n_logprobs)


def completion_limit(runner: ModelRunner, request: GenerationRequest, prompt_ids: list[int]) -> int:
    """Return the maximum number of completion tokens.

    Raises:
        ContextLengthExceeded: The prompt leaves no room for a token.
        MaxTokensTooLarge: It leaves less room than the request asks for.
    """
    wanted = request.max_new_tokens
    left = runner.max_model_len - len(prompt_ids)
    if left < (1 if wanted is None else min(wanted, 1)):
        raise prompt_too_long(runner.max_model_len, str(len(prompt_ids)), request.prompt_param)
    if wanted is not None and wanted > left:
        # Agents shorten the conversation on an overflow, which would not help here.
        raise MaxTokensTooLarge(
            f"{request.length_param!r} is {wanted}, but of the {runner.max_model_len} tokens of the model's "
            f"window the prompt leaves {left}. Ask for fewer tokens, or leave {request.length_param!r} out.",
            request.length_param,
        )
    return left if wanted is None else wanted


async def send_response(
    http: web.Request,
    loop: GenerationLoop,
    runner: ModelRunner,
    sequences: list[SequenceParams],
    writer: ResponseWriter,
) -> web.StreamResponse:
    """Generate, and respond with one object or a stream."""
    async with generate(loop, runner, sequences) as chunks:
        if sequences[0].stream:
            return await send_stream(http, writer, chunks, len(sequences))
        by_sequence: list[list[OutputChunk]] = [[] for _ in sequences]
        async for index, chunk in until_finished(chunks, len(sequences)):
            by_sequence[index].append(chunk)
        return web.Response(body=encode_json(writer.whole(by_sequence)), content_type="application/json")


def check_room(loop: GenerationLoop, n_sequences: int) -> None:
    """Raise EngineUnavailable if too many sequences are waiting."""
    if loop.waiting_count + n_sequences > MAX_WAITING_SEQUENCES:
        raise EngineUnavailable(
            f"{loop.waiting_count} completions are waiting already; the limit is {MAX_WAITING_SEQUENCES}. "
            "Try again later."
        )


@contextlib.asynccontextmanager
async def generate(
    loop: GenerationLoop, runner: ModelRunner, sequences: list[SequenceParams]
) -> AsyncIterator[ChunkQueue]:
    """Submit the sequences and yield the queue of their chunks; unfinished ones are cancelled on exit."""
    served = sequences[0].served
    # The adapter may have been unloaded while the prompt was rendered. Nothing is awaited between this check
    # and the submission, so a later unload finds the sequences and waits for them.
    if runner.models.get(served.name) is not served:
        raise ModelNotServed(served.name, runner.models)
    check_room(loop, len(sequences))
    chunks: ChunkQueue = asyncio.Queue()
    states = [SequenceState(params, make_emitter(chunks, index)) for index, params in enumerate(sequences)]
    for state in states:
        loop.submit(state)
    try:
        yield chunks
    finally:
        for state in states:
            state.cancelled = True


def make_emitter(chunks: ChunkQueue, index: int) -> Callable[[OutputChunk], None]:
    """Return a function that the generation thread calls with each chunk of a sequence."""
    event_loop = asyncio.get_running_loop()

    def emit(chunk: OutputChunk) -> None:
        event_loop.call_soon_threadsafe(chunks.put_nowait, (index, chunk))

    return emit


async def send_stream(
    http: web.Request, writer: ResponseWriter, chunks: ChunkQueue, count: int
) -> web.StreamResponse:
    """Send server-sent events as chunks arrive; the events of one chunk are sent in one write."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    http[STREAMING] = True
    # The client may leave before its handler is cancelled; aiohttp would log a traceback for each.
    with contextlib.suppress(ConnectionResetError):
        await response.prepare(http)
        # An empty write would end a chunked response.
        if opening := writer.opening():
            await response.write(opening)
        try:
            async for index, chunk in until_finished(chunks, count):
                if events := writer.events(index, chunk):
                    await response.write(events)
            closing = writer.closing()
        except GenerationFailed as error:
            closing = writer.failure(error)
        if closing:
            await response.write(closing)
    return response


async def until_finished(chunks: ChunkQueue, count: int) -> AsyncIterator[tuple[int, OutputChunk]]:
    """Yield chunks until each of `count` sequences has sent its last one. Raises GenerationFailed."""
    while count:
        index, chunk = await chunks.get()
        if chunk.error is not None:
            raise GenerationFailed(chunk.error)
        count -= chunk.finish_reason is not None
        yield index, chunk
