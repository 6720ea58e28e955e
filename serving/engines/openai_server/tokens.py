"""Tokenization and detokenization of texts and chats, in vLLM's format."""

import asyncio
from typing import Any

from serving.engines.decoding.base import ModelRunner
from serving.engines.decoding.served import ServedModel
from serving.engines.decoding.text import decode
from serving.engines.openai_server.completions import find_served_model
from serving.engines.openai_server.prompts import check_token_ids, render_chat
from serving.engines.openai_server.schemas import DetokenizeRequest, TokenizeRequest, parse_request


async def tokenize_request(runner: ModelRunner, body: bytes) -> dict[str, Any]:
    """Return the response to POST /tokenize. Raises ApiError."""
    request = parse_request(TokenizeRequest, body)
    served = find_served_model(runner, request.model)
    ids = await asyncio.to_thread(prompt_token_ids, served, request)
    strings = served.tokenizer.convert_ids_to_tokens(ids) if request.return_token_strs else None
    return {"count": len(ids), "max_model_len": runner.max_model_len, "tokens": ids, "token_strs": strings}


async def detokenize_request(runner: ModelRunner, body: bytes) -> dict[str, Any]:
    """Return the response to POST /detokenize. Raises ApiError."""
    request = parse_request(DetokenizeRequest, body)
    tokenizer = find_served_model(runner, request.model).tokenizer
    ids = check_token_ids(request.tokens, runner.vocabulary_size, "tokens") if request.tokens else []
    return {"prompt": decode(tokenizer, ids, skip_special_tokens=False)}


def prompt_token_ids(served: ServedModel, request: TokenizeRequest) -> list[int]:
    """Return the prompt's token ids of a generation request with the same text or chat."""
    if request.messages is not None:
        return render_chat(served, request.messages, request)
    special = request.add_special_tokens is not False
    ids: list[int] = served.tokenizer(request.prompt, add_special_tokens=special)["input_ids"]
    return ids
