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
    }


def components() -> Json:
    """The schemas to which the paths refer."""
    text, integer = {"type": "string"}, {"type": "integer"}
    choices = {"type": "array", "items": {"type": "object"}}
    answer = obj({"id": text, "object": text, "created": integer, "model": text, "choices": choices})
    message = obj({"role": {"type": "string"}, "content": text}, required=["role", "content"])
    error = obj({"message": text, "type": text, "param": nullable("string"), "code": nullable("string")})
    return {
        "schemas": {
            "Model": obj({"id": text, "object": text, "created": integer, "owned_by": text}),
            "ModelList": obj({"object": text, "data": {"type": "array", "items": ref("Model")}}),
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
            "ChatAnswer": answer,
            "CompletionAnswer": answer,
            "OpenAIError": obj({"error": error}),
        }
    }


def operation(summary: str, name: str, schema: str, errors: dict[str, str] | None = None) -> Json:
    """An operation that answers with a schema of ours, and with OpenAI's error otherwise."""
    responses = {"200": {"description": "OK", "content": {"application/json": {"schema": ref(schema)}}}}
    problem = {"application/json": {"schema": ref("OpenAIError")}}
    for status, description in {"401": "The key is missing or not valid.", **(errors or {})}.items():
        responses[status] = {"description": description, "content": problem}
    return {"tags": ["generation"], "summary": summary, "operationId": name, "responses": responses}


def generation(summary: str, name: str, kind: str, examples: Json) -> Json:
    """A POST that generates, plain or as a stream."""
    errors = {
        "400": "The request cannot be carried out as it stands.",
        "404": "No model of that name.",
        "413": "The body is too large.",
        "503": "The engine cannot take the request now.",
    }
    item = operation(summary, name, f"{kind}Answer", errors)
    item["responses"]["200"]["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    content = {"application/json": {"schema": ref(f"{kind}Request"), "examples": examples}}
    return {**item, "requestBody": {"required": True, "content": content}}


def obj(properties: Json, required: list[str] | None = None) -> Json:
    """A schema of an object; further properties are passed through."""
    return {"type": "object", "properties": properties, **({"required": required} if required else {})}


def ref(name: str) -> Json:
    """A reference to a schema of `components`."""
    return {"$ref": f"#/components/schemas/{name}"}


def nullable(kind: str) -> Json:
    """A schema that also takes null."""
    return {"type": [kind, "null"]}
