"""The OpenAPI document of the gateway's paths, for an application that mounts it.

The examples work unchanged with a deployment named `starter`.
"""

from typing import Any

Json = dict[str, Any]

SAMPLING: Json = {
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
    "seed": {"type": "integer", "description": "The same seed and request give the same completion."},
    "stop": {
        "oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
        "description": "Generation ends before any of these texts.",
    },
    "n": {"type": "integer", "minimum": 1, "default": 1, "description": "Number of completions."},
    "stream": {"type": "boolean", "default": False, "description": "Respond with server-sent events."},
}
# The starter model is trained on such problems only.
QUESTION = "Bo had 12 stones , sold 4 and then made 6. How many stones does Bo have?"
CHAT_EXAMPLES: Json = {
    "plain": {
        "summary": "A chat completion",
        "value": {
            "model": "starter",
            "messages": [{"role": "user", "content": QUESTION}],
            "max_tokens": 64,
            "temperature": 0,
        },
    },
    "stream": {
        "summary": "The same as a stream, with token counts at its end",
        "value": {
            "model": "starter",
            "messages": [{"role": "user", "content": QUESTION}],
            "max_tokens": 64,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    },
}
COMPLETION_EXAMPLES: Json = {
    "continue": {
        "summary": "Continue a text",
        "value": {"model": "starter", "prompt": "1, 2, 3,", "max_tokens": 16, "temperature": 0},
    }
}
RESPONSE_EXAMPLES: Json = {
    "plain": {
        "summary": "A response to a text",
        "value": {"model": "starter", "input": QUESTION, "max_output_tokens": 64, "temperature": 0},
    },
    "conversation": {
        "summary": "A conversation, which each request contains in full",
        "value": {
            "model": "starter",
            "input": [{"role": "user", "content": QUESTION}],
            "max_output_tokens": 64,
            "stream": True,
        },
    },
}


def paths() -> Json:
    """Return the path items of the gateway, including /v1."""
    name = {
        "name": "model",
        "in": "path",
        "required": True,
        "schema": {"type": "string"},
        "description": "Name of a deployment or an alias.",
        "example": "starter",
    }
    return {
        "/v1/models": {"get": operation("List the models that are served", "listModels", "ModelList")},
        "/v1/models/{model}": {
            "get": {
                **operation("Get a model", "retrieveModel", "Model", {"404": "The model is not served."}),
                "parameters": [name],
            }
        },
        "/v1/chat/completions": {
            "post": generation("Create a chat completion", "createChatCompletion", "Chat", CHAT_EXAMPLES)
        },
        "/v1/completions": {
            "post": generation(
                "Create a completion of a text", "createCompletion", "Completion", COMPLETION_EXAMPLES
            )
        },
        "/v1/responses": {
            "post": generation(
                "Create a response",
                "createResponse",
                "Response",
                RESPONSE_EXAMPLES,
            )
        },
        "/v1/embeddings": {"post": model_request("Create embeddings", "createEmbedding", "Embedding")},
    }


def components() -> Json:
    """Return the schemas that the paths refer to."""
    text, integer = {"type": "string"}, {"type": "integer"}
    choices = {"type": "array", "items": {"type": "object"}}
    completion = obj({"id": text, "object": text, "created": integer, "model": text, "choices": choices})
    error = obj({"message": text, "type": text, "param": nullable("string"), "code": nullable("string")})
    return {
        "schemas": {
            "Model": obj({"id": text, "object": text, "created": integer, "owned_by": text}),
            "ModelList": obj({"object": text, "data": {"type": "array", "items": ref("Model")}}),
            **request_schemas(),
            "EmbeddingResult": obj({"object": text, "model": text, "data": choices}),
            "ResponseResult": obj(
                {"id": text, "object": text, "created_at": integer, "status": text, "output": choices}
            ),
            "ChatResult": completion,
            "CompletionResult": completion,
            "OpenAIError": obj({"error": error}),
        }
    }


def request_schemas() -> Json:
    """Return the schemas of the request bodies; fields that are not listed are forwarded to the engine."""
    text = {"type": "string"}
    message = obj({"role": text, "content": text}, required=["role", "content"])
    return {
        "ChatRequest": obj(
            {
                "model": {"type": "string", "description": "Name of a deployment or an alias."},
                "messages": {"type": "array", "minItems": 1, "items": message},
                "max_tokens": {"type": "integer", "minimum": 1},
                **SAMPLING,
                "logprobs": {"type": "boolean", "default": False},
                "top_logprobs": {"type": "integer", "minimum": 0, "maximum": 20},
            },
            required=["model", "messages"],
        ),
        "CompletionRequest": obj(
            {
                "model": {"type": "string", "description": "Name of a deployment or an alias."},
                "prompt": {"oneOf": [text, {"type": "array", "items": text}]},
                "max_tokens": {"type": "integer", "minimum": 0, "default": 16},
                **SAMPLING,
                "logprobs": {"type": "integer", "minimum": 0, "maximum": 20},
                "echo": {"type": "boolean", "default": False},
            },
            required=["model", "prompt"],
        ),
        "ResponseRequest": obj(
            {
                "model": {"type": "string", "description": "Name of a deployment or an alias."},
                "input": {"oneOf": [text, {"type": "array", "minItems": 1, "items": message}]},
                "instructions": {
                    "type": "string",
                    "description": "A system prompt before the input.",
                },
                "max_output_tokens": {"type": "integer", "minimum": 1},
                **{name: SAMPLING[name] for name in ("temperature", "top_p", "seed", "stream")},
            },
            required=["model", "input"],
        ),
        "EmbeddingRequest": obj(
            {
                "model": {"type": "string", "description": "Name of a deployment or an alias."},
                "input": {"oneOf": [text, {"type": "array", "minItems": 1, "items": text}]},
            },
            required=["model", "input"],
        )
        # The starter has no embeddings; this example needs an engine that was started for them.
        | {"examples": [{"model": "embedder", "input": ["Good morning.", "안녕하세요."]}]},
    }


def operation(summary: str, name: str, schema: str, errors: dict[str, str] | None = None) -> Json:
    """Return an operation with a schema for its response, and OpenAI's error schema for its errors."""
    responses = {"200": {"description": "OK", "content": {"application/json": {"schema": ref(schema)}}}}
    problem = {"application/json": {"schema": ref("OpenAIError")}}
    for status, description in {"401": "The API key is missing or not valid.", **(errors or {})}.items():
        responses[status] = {"description": description, "content": problem}
    return {"tags": ["generation"], "summary": summary, "operationId": name, "responses": responses}


def model_request(summary: str, name: str, kind: str, examples: Json | None = None) -> Json:
    """Return a POST operation to a model."""
    errors = {
        "400": "The request is invalid; `param` names the field.",
        "404": "No model of this name is served, or its engine does not support this path.",
        "413": "The request body is too large.",
        "429": "The API key has reached a limit. Retry-After contains the seconds to wait.",
        "503": "No engine can take the request now.",
    }
    item = operation(summary, name, f"{kind}Result", errors)
    content: Json = {"schema": ref(f"{kind}Request"), **({"examples": examples} if examples else {})}
    return {**item, "requestBody": {"required": True, "content": {"application/json": content}}}


def generation(summary: str, name: str, kind: str, examples: Json) -> Json:
    """Return a POST operation that generates text, with a stream as a second content type."""
    item = model_request(summary, name, kind, examples)
    item["responses"]["200"]["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    return item


def obj(properties: Json, required: list[str] | None = None) -> Json:
    """Return the schema of an object that allows further properties."""
    return {"type": "object", "properties": properties, **({"required": required} if required else {})}


def ref(name: str) -> Json:
    """Return a reference to a schema of `components`."""
    return {"$ref": f"#/components/schemas/{name}"}


def nullable(kind: str) -> Json:
    """Return a schema that allows null."""
    return {"type": [kind, "null"]}
