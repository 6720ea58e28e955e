"""OpenAPI of the gateway's routes, for an application that mounts it and shows one page for all.

The examples work as they stand with a deployment named `starter`.
"""

from typing import Any

Json = dict[str, Any]

SAMPLING: Json = {
    "temperature": {"type": "number", "minimum": 0, "default": 1},
    "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1, "default": 1},
    "seed": {"type": "integer", "description": "The same seed draws the same answer."},
    "stop": {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
    "n": {"type": "integer", "minimum": 1, "default": 1},
    "stream": {"type": "boolean", "default": False, "description": "Answer as server-sent events."},
}
# The starter model has learnt nothing but such problems.
QUESTION = "Bo had 12 stones , sold 4 and then made 6. How many stones does Bo have?"
CHAT_EXAMPLES: Json = {
    "plain": {
        "summary": "A chat",
        "value": {
            "model": "starter",
            "messages": [{"role": "user", "content": QUESTION}],
            "max_tokens": 64,
            "temperature": 0,
        },
    },
    "stream": {
        "summary": "The same as a stream",
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
        "summary": "An answer to a text",
        "value": {"model": "starter", "input": QUESTION, "max_output_tokens": 64, "temperature": 0},
    },
    "conversation": {
        "summary": "The conversation goes with each request",
        "value": {
            "model": "starter",
            "input": [{"role": "user", "content": QUESTION}],
            "max_output_tokens": 64,
            "stream": True,
        },
    },
}


def paths() -> Json:
    """Path items of the gateway, complete with /v1."""
    name = {
        "name": "model",
        "in": "path",
        "required": True,
        "schema": {"type": "string"},
        "example": "starter",
    }
    return {
        "/v1/models": {"get": operation("List the models that are served", "listModels", "ModelList")},
        "/v1/models/{model}": {
            "get": {
                **operation("Show one model", "retrieveModel", "Model", {"404": "No model of that name."}),
                "parameters": [name],
            }
        },
        "/v1/chat/completions": {
            "post": generation("Answer a chat", "createChatCompletion", "Chat", CHAT_EXAMPLES)
        },
        "/v1/completions": {
            "post": generation("Continue a text", "createCompletion", "Completion", COMPLETION_EXAMPLES)
        },
        "/v1/responses": {
            "post": generation(
                "Answer a text or a conversation", "createResponse", "Response", RESPONSE_EXAMPLES
            )
        },
        "/v1/embeddings": {
            "post": asking("Embed texts, where the engine can", "createEmbedding", "Embedding")
        },
    }


def components() -> Json:
    """The schemas to which the paths refer."""
    text, integer = {"type": "string"}, {"type": "integer"}
    choices = {"type": "array", "items": {"type": "object"}}
    answer = obj({"id": text, "object": text, "created": integer, "model": text, "choices": choices})
    error = obj({"message": text, "type": text, "param": nullable("string"), "code": nullable("string")})
    return {
        "schemas": {
            "Model": obj({"id": text, "object": text, "created": integer, "owned_by": text}),
            "ModelList": obj({"object": text, "data": {"type": "array", "items": ref("Model")}}),
            **request_schemas(),
            "EmbeddingAnswer": obj({"object": text, "model": text, "data": choices}),
            "ResponseAnswer": obj(
                {"id": text, "object": text, "created_at": integer, "status": text, "output": choices}
            ),
            "ChatAnswer": answer,
            "CompletionAnswer": answer,
            "OpenAIError": obj({"error": error}),
        }
    }


def request_schemas() -> Json:
    """What each path takes; what an engine knows beyond it is passed through."""
    text = {"type": "string"}
    message = obj({"role": text, "content": text}, required=["role", "content"])
    return {
        "ChatRequest": obj(
            {
                "model": {"type": "string", "description": "Name of a deployment."},
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
                "model": {"type": "string", "description": "Name of a deployment."},
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
                "model": {"type": "string", "description": "Name of a deployment."},
                "input": {"oneOf": [text, {"type": "array", "minItems": 1, "items": message}]},
                "instructions": {"type": "string", "description": "Read before the input."},
                "max_output_tokens": {"type": "integer", "minimum": 1},
                **{name: SAMPLING[name] for name in ("temperature", "top_p", "seed", "stream")},
            },
            required=["model", "input"],
        ),
        "EmbeddingRequest": obj(
            {
                "model": {"type": "string", "description": "Name of a deployment."},
                "input": {"oneOf": [text, {"type": "array", "minItems": 1, "items": text}]},
            },
            required=["model", "input"],
        )
        # The starter has no embeddings; this is for a route to an engine that was started for them.
        | {"examples": [{"model": "embedder", "input": ["Good morning.", "안녕하세요."]}]},
    }


def operation(summary: str, name: str, schema: str, errors: dict[str, str] | None = None) -> Json:
    """An operation that answers with a schema of ours, and with OpenAI's error otherwise."""
    responses = {"200": {"description": "OK", "content": {"application/json": {"schema": ref(schema)}}}}
    problem = {"application/json": {"schema": ref("OpenAIError")}}
    for status, description in {"401": "The key is missing or not valid.", **(errors or {})}.items():
        responses[status] = {"description": description, "content": problem}
    return {"tags": ["generation"], "summary": summary, "operationId": name, "responses": responses}


def asking(summary: str, name: str, kind: str, examples: Json | None = None) -> Json:
    """A POST to a model."""
    errors = {
        "400": "The request cannot be carried out as it stands.",
        "404": "No model of that name, or its engine cannot do this.",
        "413": "The body is too large.",
        "429": "The key has asked as much as it may for now; Retry-After says when to come back.",
        "503": "The engine cannot take the request now.",
    }
    item = operation(summary, name, f"{kind}Answer", errors)
    content: Json = {"schema": ref(f"{kind}Request"), **({"examples": examples} if examples else {})}
    return {**item, "requestBody": {"required": True, "content": {"application/json": content}}}


def generation(summary: str, name: str, kind: str, examples: Json) -> Json:
    """A POST that generates, plain or as a stream."""
    item = asking(summary, name, kind, examples)
    item["responses"]["200"]["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    return item


def obj(properties: Json, required: list[str] | None = None) -> Json:
    """A schema of an object; further properties are passed through."""
    return {"type": "object", "properties": properties, **({"required": required} if required else {})}


def ref(name: str) -> Json:
    """A reference to a schema of `components`."""
    return {"$ref": f"#/components/schemas/{name}"}


def nullable(kind: str) -> Json:
    """A schema that also takes null."""
    return {"type": [kind, "null"]}
