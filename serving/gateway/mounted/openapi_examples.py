"""Examples of the gateway's requests, and responses of the starter model to them.

The requests work unchanged with a deployment named `starter`. The starter solves about half of such problems.
"""

import json
from typing import Any

Json = dict[str, Any]


def format_stream(events: list[Json], end: str = "", named: bool = False) -> str:
    """Return events as server-sent events, with their type as the event's name if `named`."""
    lines = [
        (f"event: {event['type']}\n" if named else "") + f"data: {json.dumps(event)}\n\n" for event in events
    ]
    return "".join(lines) + end


# The starter model is trained on such problems only.
QUESTION = "Bo had 12 stones , sold 4 and then made 6. How many stones does Bo have?"
MESSAGES = [{"role": "user", "content": QUESTION}]
CHAT_REQUESTS: Json = {
    "plain": {
        "summary": "A chat completion",
        "value": {"model": "starter", "messages": MESSAGES, "max_tokens": 64, "temperature": 0},
    },
    "stream": {
        "summary": "The same as a stream, with token counts at its end",
        "value": {
            "model": "starter",
            "messages": MESSAGES,
            "max_tokens": 64,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    },
}
COMPLETION_REQUESTS: Json = {
    "continue": {
        "summary": "Continue a text",
        "value": {"model": "starter", "prompt": "1, 2, 3,", "max_tokens": 16, "temperature": 0},
    }
}
RESPONSE_REQUESTS: Json = {
    "plain": {
        "summary": "A response to a text",
        "value": {"model": "starter", "input": QUESTION, "max_output_tokens": 64, "temperature": 0},
    },
    "conversation": {
        "summary": "A conversation, which each request contains in full",
        "value": {"model": "starter", "input": MESSAGES, "max_output_tokens": 64, "stream": True},
    },
}

MODEL: Json = {
    "id": "starter",
    "object": "model",
    "created": 1795856400,
    "owned_by": "tunesmith",
    "max_model_len": 256,
}
MODEL_LIST: Json = {"object": "list", "data": [MODEL]}
CHAT: Json = {
    "id": "chatcmpl-9afbedb2dfb94eb39160c8c35022728e",
    "object": "chat.completion",
    "created": 1795882466,
    "model": "starter",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "So 12 + 4 = 15. Then 15 + 6 = 21.\n#### 21",
                "refusal": None,
            },
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 28, "completion_tokens": 17, "total_tokens": 45},
}
# The stream of a request for two tokens.
CHAT_STREAM = format_stream(
    [
        {
            "id": "chatcmpl-7348281ba5a648ed835bb3f8a41c88b2",
            "object": "chat.completion.chunk",
            "created": 1795882466,
            "model": "starter",
            "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}],
            "usage": None,
        },
        {
            "id": "chatcmpl-7348281ba5a648ed835bb3f8a41c88b2",
            "object": "chat.completion.chunk",
            "created": 1795882466,
            "model": "starter",
            "choices": [{"index": 0, "delta": {"content": "So"}, "logprobs": None, "finish_reason": None}],
            "usage": None,
        },
        {
            "id": "chatcmpl-7348281ba5a648ed835bb3f8a41c88b2",
            "object": "chat.completion.chunk",
            "created": 1795882466,
            "model": "starter",
            "choices": [
                {"index": 0, "delta": {"content": " 12"}, "logprobs": None, "finish_reason": "length"}
            ],
            "usage": None,
        },
        {
            "id": "chatcmpl-7348281ba5a648ed835bb3f8a41c88b2",
            "object": "chat.completion.chunk",
            "created": 1795882466,
            "model": "starter",
            "choices": [],
            "usage": {"prompt_tokens": 28, "completion_tokens": 2, "total_tokens": 30},
        },
    ],
    "data: [DONE]\n\n",
)
COMPLETION: Json = {
    "id": "cmpl-cdfb958c77e143859d3152ee609a4106",
    "object": "text_completion",
    "created": 1795882466,
    "model": "starter",
    "choices": [
        {"index": 0, "text": " 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2", "logprobs": None, "finish_reason": "length"}
    ],
    "usage": {"prompt_tokens": 6, "completion_tokens": 16, "total_tokens": 22},
}
COMPLETION_STREAM = format_stream(
    [
        {
            "id": "cmpl-189f1cb14d114010b1995ecbb1c04407",
            "object": "text_completion",
            "created": 1795882466,
            "model": "starter",
            "choices": [{"index": 0, "text": " 2", "logprobs": None, "finish_reason": None}],
            "usage": None,
        },
        {
            "id": "cmpl-189f1cb14d114010b1995ecbb1c04407",
            "object": "text_completion",
            "created": 1795882466,
            "model": "starter",
            "choices": [{"index": 0, "text": " 2", "logprobs": None, "finish_reason": "length"}],
            "usage": None,
        },
    ],
    "data: [DONE]\n\n",
)
RESPONSE: Json = {
    "id": "resp_0ac6df50f15d4335b928e5f97e6716cd",
    "object": "response",
    "created_at": 1795882466,
    "status": "completed",
    "background": False,
    "completed_at": 1795882466,
    "error": None,
    "incomplete_details": None,
    "model": "starter",
    "instructions": None,
    "max_output_tokens": 64,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "store": False,
    "temperature": 0.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
    "output": [
        {
            "id": "msg_6a42cbca15fe45528acc9c011db9992a",
            "type": "message",
            "status": "completed",
            "role": "assistant",
            "content": [
                {
                    "type": "output_text",
                    "text": "So 12 + 4 = 15. Then 15 + 6 = 21.\n#### 21",
                    "annotations": [],
                    "logprobs": [],
                }
            ],
        }
    ],
    "usage": {
        "input_tokens": 28,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 17,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 45,
    },
}
# Some of the events: two pieces of text and the last event.
RESPONSE_STREAM = format_stream(
    [
        *[
            {
                "type": "response.output_text.delta",
                "sequence_number": 4,
                "item_id": "msg_cab33385156940719754ed5beb8b7543",
                "output_index": 0,
                "content_index": 0,
                "delta": "So",
                "logprobs": [],
            },
            {
                "type": "response.output_text.delta",
                "sequence_number": 5,
                "item_id": "msg_cab33385156940719754ed5beb8b7543",
                "output_index": 0,
                "content_index": 0,
                "delta": " 12",
                "logprobs": [],
            },
        ],
        {"type": "response.completed", "sequence_number": 21, "response": RESPONSE},
    ],
    named=True,
)
# Abbreviated embeddings: real ones have hundreds of values.
EMBEDDINGS: Json = {
    "object": "list",
    "model": "embedder",
    "data": [
        {"object": "embedding", "index": 0, "embedding": [0.0132, -0.0457, 0.0081]},
        {"object": "embedding", "index": 1, "embedding": [0.0209, -0.0311, 0.0174]},
    ],
    "usage": {"prompt_tokens": 9, "total_tokens": 9},
}


def error(message: str, code: str, param: str | None = None, kind: str = "invalid_request_error") -> Json:
    """Return the body of an error response."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


ERRORS: Json = {
    "400": error("'n' is 1000, but the limit is 128.", "invalid_request", "n"),
    "401": error(
        "The request has no API key. Send `Authorization: Bearer ts_…`. Create an API key with "
        "`python -m app keys create --name me --scope admin`.",
        "invalid_api_key",
        kind="authentication_error",
    ),
    "403": error(
        "The request requires the scope inference; this API key has read. Use a key with that scope. An "
        "admin creates one with POST /api/v1/keys.",
        "forbidden",
        kind="permission_error",
    ),
    "404": error("The model 'other' does not exist. Available: starter.", "model_not_found", "model"),
    "413": error(
        "The request body is larger than 8388608 bytes. Send a shorter prompt.", "request_too_large"
    ),
    "415": error(
        "The Content-Encoding 'zstd' is not supported. Use gzip, or leave it out.", "unsupported_encoding"
    ),
    "429": error(
        "This API key has reached its rate limit (requests per minute: 60). Try again in 1 s.",
        "rate_limit_exceeded",
        kind="rate_limit_error",
    ),
    "503": error(
        "The engine of 'starter' is unreachable; it may be restarting. Try again soon.",
        "engine_unavailable",
        kind="server_error",
    ),
}
