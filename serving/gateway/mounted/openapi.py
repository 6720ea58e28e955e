"""The OpenAPI document of the gateway's paths, for an application that mounts it."""

from typing import Any

from serving.gateway.mounted import openapi_examples as examples
from serving.gateway.mounted.openapi_schemas import request_schemas, response_schemas

Json = dict[str, Any]

ERRORS = {
    "400": "The request is invalid; `param` names the field.",
    "401": "The API key is missing or not valid.",
    "403": "The API key lacks the scope `inference`, or a web page of another origin sent the request.",
    "404": "The model is not served, or its engine does not support this path.",
    "413": "The request body is too large.",
    "415": "The request body has a Content-Encoding other than gzip.",
    "429": "The API key has reached a limit. Retry-After contains the seconds to wait.",
    "503": "No engine can take the request now. Retry-After contains the seconds to wait.",
}
MODEL_NAME: Json = {
    "name": "model",
    "in": "path",
    "required": True,
    "schema": {"type": "string"},
    "description": "Name of a deployment or an alias.",
    "example": "starter",
}


def paths() -> Json:
    """Return the path items of the gateway, including /v1."""
    return {
        "/v1/models": {
            "get": operation(
                "List the served models", "listModels", "ModelList", examples.MODEL_LIST, ["401", "403"]
            )
        },
        "/v1/models/{model}": {
            "get": {
                **operation("Get a model", "retrieveModel", "Model", examples.MODEL, ["401", "403", "404"]),
                "parameters": [MODEL_NAME],
            }
        },
        "/v1/chat/completions": {
            "post": generation(
                "Create a chat completion",
                "createChatCompletion",
                "Chat",
                examples.CHAT_REQUESTS,
                examples.CHAT,
                examples.CHAT_STREAM,
            )
        },
        "/v1/completions": {
            "post": generation(
                "Create a completion of a text",
                "createCompletion",
                "Completion",
                examples.COMPLETION_REQUESTS,
                examples.COMPLETION,
                examples.COMPLETION_STREAM,
            )
        },
        "/v1/responses": {
            "post": generation(
                "Create a response",
                "createResponse",
                "Response",
                examples.RESPONSE_REQUESTS,
                examples.RESPONSE,
                examples.RESPONSE_STREAM,
            )
        },
        "/v1/embeddings": {
            "post": {
                **model_request(
                    "Create embeddings", "createEmbedding", "Embedding", None, examples.EMBEDDINGS
                ),
                "description": "For deployments with `task: embed`; others refuse it with the code "
                "`task_not_served`.",
            }
        },
    }


def components() -> Json:
    """Return the schemas that the paths refer to."""
    return {"schemas": {**request_schemas(), **response_schemas()}}


def operation(summary: str, name: str, schema: str, example: Json, errors: list[str]) -> Json:
    """Return an operation with a schema and an example for its response, and OpenAI's error otherwise."""
    responses: Json = {
        "200": {
            "description": "OK",
            "content": {"application/json": {"schema": {"$ref": reference(schema)}, "example": example}},
        }
    }
    for status in errors:
        error = {"schema": {"$ref": reference("OpenAIError")}, "example": examples.ERRORS[status]}
        responses[status] = {"description": ERRORS[status], "content": {"application/json": error}}
    return {"tags": ["generation"], "summary": summary, "operationId": name, "responses": responses}


def model_request(summary: str, name: str, kind: str, requests: Json | None, response: Json) -> Json:
    """Return a POST operation to a model."""
    item = operation(summary, name, f"{kind}Result", response, list(ERRORS))
    content: Json = {"schema": {"$ref": reference(f"{kind}Request")}}
    if requests:
        content["examples"] = requests
    return {**item, "requestBody": {"required": True, "content": {"application/json": content}}}


def generation(summary: str, name: str, kind: str, requests: Json, response: Json, stream: str) -> Json:
    """Return a POST operation that generates text, with a stream as a second content type."""
    item = model_request(summary, name, kind, requests, response)
    item["responses"]["200"]["content"]["text/event-stream"] = {
        "schema": {"type": "string", "description": "Server-sent events, if `stream` is true."},
        "example": stream,
    }
    return item


def reference(name: str) -> str:
    """Return the reference to a schema of `components`."""
    return f"#/components/schemas/{name}"
