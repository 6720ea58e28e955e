"""Schemas of the gateway's requests and responses. Every field is described.

A request has the fields of the allow-list and no others; an engine may return further fields.
"""

from typing import Any

from serving.gateway.request_body import (
    ALLOWED_FIELDS,
    LIMITED_FIELDS,
    OPENAI_FIELDS,
    STATEFUL_FIELDS,
    TEMPLATE_OPTIONS,
    RequestLimits,
)
from serving.http.limits import MAX_EMBEDDING_INPUTS

Json = dict[str, Any]


LIMITS = RequestLimits()
PATHS_OF_REQUESTS = {
    "ChatRequest": "/v1/chat/completions",
    "CompletionRequest": "/v1/completions",
    "ResponseRequest": "/v1/responses",
    "EmbeddingRequest": "/v1/embeddings",
}


def request_schemas() -> Json:
    """Return the schemas of the request bodies, with every allowed field."""
    return {
        name: _with_allowed_fields(PATHS_OF_REQUESTS[name], schema)
        for name, schema in _described_requests().items()
    }


def _with_allowed_fields(path: str, schema: Json) -> Json:
    """Add the fields of the allow-list that have no description of their own."""
    described = schema["properties"]
    others = {}
    for name in sorted(ALLOWED_FIELDS[path] - described.keys() - STATEFUL_FIELDS):
        source = "As in OpenAI's API" if name in OPENAI_FIELDS[path].split() else "As in vLLM's API"
        others[name] = {"description": f"{source}; the engine may not support it."}
        if name in LIMITED_FIELDS:
            others[name] |= integer(others[name]["description"], 1, getattr(LIMITS, LIMITED_FIELDS[name]))
        if name == TEMPLATE_OPTIONS:
            others[name] = {"type": "object", "description": "Variables of the chat template."}
    return schema | {"properties": described | others, "additionalProperties": False}


def _described_requests() -> Json:
    """Return the schemas of the request bodies with their most important fields."""
    messages = array(
        obj(
            {
                "role": text("`system`, `user` or `assistant`."),
                "content": text("The text of the message."),
            },
            ["role", "content"],
        ),
        "The conversation, oldest message first.",
    )
    model = text("Name of a deployment or an alias.")
    ids = several({"type": "integer", "minimum": 0}, 2**20)
    return {
        "ChatRequest": obj(
            {
                "model": model,
                "messages": messages,
                "max_tokens": integer(
                    "Maximum tokens of a completion; by default the context that is left.",
                    1,
                    LIMITS.max_tokens,
                ),
                **sampling(),
                **choices_fields(),
                "logprobs": boolean("Return the log-probability of each generated token."),
                "top_logprobs": integer(
                    "Number of alternatives per token with their log-probabilities.", 0, 20
                ),
            },
            ["model", "messages"],
        ),
        "CompletionRequest": obj(
            {
                "model": model,
                "prompt": {
                    "oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
                    "description": "One text, or several that are completed independently.",
                },
                "max_tokens": integer("Maximum tokens of a completion.", 0, LIMITS.max_tokens)
                | {"default": 16},
                **sampling(),
                **choices_fields(),
                "logprobs": integer("Number of alternatives per token with their log-probabilities.", 0, 20),
                "echo": boolean("Return the prompt before the completion."),
            },
            ["model", "prompt"],
        ),
        "ResponseRequest": obj(
            {
                "model": model,
                "input": {
                    "oneOf": [{"type": "string"}, messages],
                    "description": "A text, or a conversation.",
                },
                "instructions": text("A system prompt, placed before the input."),
                "max_output_tokens": integer("Maximum tokens of the response.", 1, LIMITS.max_tokens),
                **sampling(),
                "store": {
                    "type": "boolean",
                    "default": True,
                    "description": "Store the response if its deployment has `store_days`.",
                },
                "previous_response_id": text(
                    "The stored response that this one continues; its items come before the input."
                ),
            },
            ["model", "input"],
        ),
        "EmbeddingRequest": obj(
            {
                "model": model,
                "input": {
                    "oneOf": [{"type": "string"}, several({"type": "string"}), ids, several(ids)],
                    "description": "One text or several, as text or as token ids, to which nothing is added.",
                },
                "encoding_format": {
                    "enum": ["float", "base64"],
                    "default": "float",
                    "description": "`base64` is of little-endian 32-bit floats.",
                },
                "dimensions": integer(
                    "Size of the embeddings, for a model whose config declares Matryoshka embeddings.", 1
                ),
            },
            ["model", "input"],
        )
        # The starter generates; this example needs a deployment with `task: embed`.
        | {"examples": [{"model": "embedder", "input": ["Good morning.", "안녕하세요."]}]},
    }


def response_schemas() -> Json:
    """Return the schemas of the responses."""
    model = obj(
        {
            "id": text("Name of the deployment or alias."),
            "object": text("Always `model`."),
            "created": integer("Unix time at which the route was created."),
            "owned_by": text("Name of the organization (`TUNESMITH_ORGANIZATION`)."),
            "max_model_len": integer("Tokens of prompt and completion together, if the engine responds."),
            "parent": text("Name of the base of an adapter."),
            "task": {"enum": ["generate", "embed"], "description": "What the deployment computes."},
        },
        ["id", "object", "created", "owned_by"],
    )
    usage = obj(
        {
            "prompt_tokens": integer("Tokens of the prompt."),
            "completion_tokens": integer("Tokens of all completions."),
            "total_tokens": integer("Sum of both."),
        }
    ) | {"description": "Tokens of the request."}
    error = obj(
        {
            "message": text("What is wrong, and what to do."),
            "type": text("OpenAI's class of the error, such as `invalid_request_error`."),
            "param": {"type": ["string", "null"], "description": "The field of the request that is wrong."},
            "code": {"type": ["string", "null"], "description": "One of the published error codes."},
        }
    ) | {"description": "The error of the request."}
    return {
        "Model": model,
        "ModelList": obj(
            {
                "object": text("Always `list`."),
                "data": array({"$ref": "#/components/schemas/Model"}, "The served models."),
            }
        ),
        "ChatResult": completion_result("Each has an `index`, a `message` and a `finish_reason`.", usage),
        "CompletionResult": completion_result("Each has an `index`, a `text` and a `finish_reason`.", usage),
        "ResponseResult": obj(
            {
                "id": text("Id of the response."),
                "object": text("Always `response`."),
                "created_at": integer("Unix time of the response."),
                "status": text("`completed`, `incomplete` or `failed`."),
                "model": text("The model name of the request."),
                "output": array({"type": "object"}, "The generated messages."),
                "usage": obj(
                    {
                        "input_tokens": integer("Tokens of the input."),
                        "output_tokens": integer("Tokens of the output."),
                        "total_tokens": integer("Sum of both."),
                    }
                )
                | {"description": "Tokens of the request."},
            }
        ),
        "EmbeddingResult": obj(
            {
                "object": text("Always `list`."),
                "model": text("The model name of the request."),
                "data": array({"type": "object"}, "One embedding per text, with its `index`."),
            }
        ),
        "OpenAIError": obj({"error": error}),
    }


def completion_result(choices: str, usage: Json) -> Json:
    """Return the schema of a chat completion or a text completion."""
    return obj(
        {
            "id": text("Id of the completion."),
            "object": text("`chat.completion` or `text_completion`."),
            "created": integer("Unix time of the completion."),
            "model": text("The model name of the request."),
            "choices": array({"type": "object"}, choices),
            "usage": usage,
        }
    )


def sampling() -> Json:
    """Return the fields that control sampling."""
    return {
        "temperature": {
            "type": "number",
            "minimum": 0,
            "default": 1,
            "description": "0 is greedy decoding; higher values are more random.",
        },
        "top_p": {
            "type": "number",
            "exclusiveMinimum": 0,
            "maximum": 1,
            "default": 1,
            "description": "Sample from the most probable tokens whose probabilities sum to this value.",
        },
        "seed": integer("The same seed and request give the same completion."),
        "stream": boolean("Respond with server-sent events."),
    }


def choices_fields() -> Json:
    """Return the fields of endpoints that can generate several completions."""
    return {
        "stop": {
            "oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
            "description": "Generation ends before any of these texts.",
        },
        "n": integer("Number of completions.", 1, LIMITS.max_choices) | {"default": 1},
    }


def obj(properties: Json, required: list[str] | None = None) -> Json:
    """Return the schema of an object that allows further properties."""
    return {"type": "object", "properties": properties, **({"required": required} if required else {})}


def several(items: Json, maximum: int = MAX_EMBEDDING_INPUTS) -> Json:
    """Return the schema of an array that is not empty."""
    return {"type": "array", "minItems": 1, "maxItems": maximum, "items": items}


def array(items: Json, description: str) -> Json:
    """Return the schema of an array."""
    return {"type": "array", "items": items, "description": description}


def text(description: str) -> Json:
    """Return the schema of a string."""
    return {"type": "string", "description": description}


def integer(description: str, minimum: int | None = None, maximum: int | None = None) -> Json:
    """Return the schema of an integer."""
    bounds = {"minimum": minimum, "maximum": maximum}
    return {
        "type": "integer",
        **{name: bound for name, bound in bounds.items() if bound is not None},
        "description": description,
    }


def boolean(description: str) -> Json:
    """Return the schema of a boolean that is false by default."""
    return {"type": "boolean", "default": False, "description": description}
