"""Tokenization and detokenization of texts and chats, in vLLM's format."""

from typing import Any

from aiohttp import web

from serving.engines.decoding.served import LoadedModel, ServedModel
from serving.engines.decoding.text import decode
from serving.engines.openai_server.completions import find_served_model
from serving.engines.openai_server.edges import read_body
from serving.engines.openai_server.prompt_queue import PROMPT_QUEUE, PromptWorker
from serving.engines.openai_server.prompts import (
    chat_token_ids,
    check_token_ids,
    encode,
    refuse_long_prompts,
)
from serving.engines.openai_server.schemas import DetokenizeRequest, TokenizeRequest, parse_request


async def tokenize_request(http: web.Request, runner: LoadedModel) -> dict[str, Any]:
    """Return the response to POST /tokenize. Raises ApiError."""
    body = await read_body(http)
    request = parse_request(TokenizeRequest, body)
    served = find_served_model(runner.models, request.model)
    ids = await http.app[PROMPT_QUEUE].run(
        lambda worker: prompt_token_ids(worker, served, runner.max_model_len, request), len(body)
    )
    strings = served.tokenizer.convert_ids_to_tokens(ids) if request.return_token_strs else None
    return {"count": len(ids), "max_model_len": runner.max_model_len, "tokens": ids, "token_strs": strings}


async def detokenize_request(http: web.Request, runner: LoadedModel) -> dict[str, Any]:
    """Return the response to POST /detokenize. Raises ApiError."""
    body = await read_body(http)
    request = parse_request(DetokenizeRequest, body)
    served = find_served_model(runner.models, request.model)
    refuse_long_prompts(served, runner.max_model_len, [request.tokens], "tokens")
    ids = check_token_ids(request.tokens, runner.vocabulary_size, "tokens") if request.tokens else []
    text = await http.app[PROMPT_QUEUE].run(
        lambda worker: decode(served.tokenizer, ids, skip_special_tokens=False), len(body)
    )
    return {"prompt": text}


def prompt_token_ids(
    worker: PromptWorker, served: ServedModel, max_tokens: int, request: TokenizeRequest
) -> list[int]:
    """Return the prompt's token ids of a generation request with the same text or chat."""
    if request.messages is not None:
        return chat_token_ids(worker, served, max_tokens, request.messages, request)
    special = request.add_special_tokens is not False
    if request.prompt:
        return encode(worker, served, max_tokens, request.prompt, special, "prompt")
    ids: list[int] = served.tokenizer("", add_special_tokens=special)["input_ids"]
    return ids
