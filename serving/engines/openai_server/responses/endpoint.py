"""POST /v1/responses."""

from aiohttp import web

from serving.engines.decoding.base import ModelRunner
from serving.engines.decoding.loop import GenerationLoop
from serving.engines.openai_server.completions import (
    check_room,
    find_served_model,
    make_sequence_params,
    prepare_chat,
    send_response,
)
from serving.engines.openai_server.edges import read_body
from serving.engines.openai_server.prompt_queue import PROMPT_QUEUE
from serving.engines.openai_server.responses.request import ResponseRequest
from serving.engines.openai_server.responses.writer import ResponsesWriter
from serving.engines.openai_server.schemas import parse_request


async def create_response(http: web.Request, loop: GenerationLoop, runner: ModelRunner) -> web.StreamResponse:
    """Respond to POST /v1/responses. Raises ApiError before the response has begun."""
    body = await read_body(http)
    request = parse_request(ResponseRequest, body)
    served = find_served_model(runner.models, request.model)
    check_room(loop, 1)
    prompt_ids, plan = await http.app[PROMPT_QUEUE].run(
        lambda worker: prepare_chat(
            worker, runner, served, request, request.messages, request.output, request.prompt_param
        ),
        len(body),
    )
    sequences = make_sequence_params(runner, served, request, [prompt_ids], request.n_logprobs, plan=plan)
    writer = ResponsesWriter(request, served.tokenizer, len(prompt_ids), sequences[0].sampling, plan)
    return await send_response(http, loop, runner, sequences, writer)
