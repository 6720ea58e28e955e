"""The application of OpenAI's API at /v1; the gateway in front of it serves generation and lists models."""

from typing import Any

from fastapi import Depends, FastAPI
from fastapi.openapi.utils import get_openapi

from app.http.auth import require_by_method, require_inference
from app.http.documents.application import create_application
from app.http.documents.document import correct_document
from app.http.gateway import add_gateway_paths
from app.idempotency.creation import CreationMiddleware
from app.openai_api.batches import endpoints as batches
from app.openai_api.chat_completions import endpoints as chat_completions
from app.openai_api.errors import OpenAIErrorResponse, install_openai_errors
from app.openai_api.evals import endpoints as evals
from app.openai_api.files import endpoints as files
from app.openai_api.fine_tuning import endpoints as fine_tuning
from app.openai_api.graders import endpoints as graders
from app.openai_api.models import endpoints as models
from app.openai_api.parameters import refuse_unknown_query
from app.openai_api.responses import endpoints as responses
from app.openai_api.uploads import endpoints as uploads
from app.openai_api.webhooks import endpoints as webhooks

PREFIX = "/v1"
NOUNS = (
    evals,
    files,
    fine_tuning,
    graders,
    models,
    uploads,
    webhooks,
    batches,
)
STORED_NOUNS = (chat_completions, responses)
DESCRIPTION = (
    "OpenAI's API, for its official clients: set `base_url` to this address and `api_key` to a key of this "
    "service. Fields that OpenAI does not have are named as such. Tunesmith's own API is at [/docs](/docs)."
)
TAGS = [
    {"name": "generation", "description": "Chats, completions, responses and embeddings of deployed models."},
    {"name": "chat", "description": "Stored chat completions, of deployments with `store_days`."},
    {"name": "responses", "description": "Stored responses, of deployments with `store_days`."},
    {"name": "files", "description": "Files for training, batches and evaluations."},
    {"name": "evals", "description": "Evaluations by graders, with their runs and items."},
    {"name": "models", "description": "Deployed and fine-tuned models."},
    {"name": "uploads", "description": "Files that are sent in parts."},
    {"name": "fine-tuning", "description": "Fine-tuning jobs, their events and their checkpoints."},
    {"name": "webhooks", "description": "Addresses that receive signed events."},
    {"name": "graders", "description": "Graders, tried on one completion."},
    {"name": "batches", "description": "Files of requests whose responses become files."},
]


def create_openai_app() -> FastAPI:
    """Create the application, to be mounted at /v1."""
    app = create_application(
        OpenAIErrorResponse,
        title="Tunesmith: OpenAI's API",
        description=DESCRIPTION,
        openapi_tags=TAGS,
        redirect_slashes=False,  # A path is served as it is written or not at all, as by the gateway.
    )
    install_openai_errors(app)
    app.add_middleware(CreationMiddleware)
    for noun in NOUNS:
        checks = [Depends(require_by_method), Depends(refuse_unknown_query)]
        app.include_router(noun.router, dependencies=checks)
    for noun in STORED_NOUNS:
        # Who may generate may read what was generated.
        checks = [Depends(require_inference), Depends(refuse_unknown_query)]
        app.include_router(noun.router, dependencies=checks)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            tags=app.openapi_tags,
            routes=app.routes,
            servers=[{"url": PREFIX}],
        )
        add_gateway_paths(schema, PREFIX)
        correct_document(schema)
        app.openapi_schema = schema
    return app.openapi_schema
