"""An application with its page of documentation."""

from typing import Any

from fastapi import Depends, FastAPI
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel

from app.http.metrics import VERSION
from app.http.text_check import refuse_unstorable_text
from serving.http.limits import MAX_BODY_BYTES

SWAGGER_UI: dict[str, Any] = {
    "tryItOutEnabled": True,
    "persistAuthorization": True,
    # Show the description of each field without a click.
    "defaultModelExpandDepth": 2,
    # The list of all schemas is longer than the rest of the page; it is collapsed.
    "defaultModelsExpandDepth": 0,
    "filter": True,
}


def create_application(error: type[BaseModel], **options: Any) -> FastAPI:
    """Create an application whose errors have the body `error`; `options` are further ones of FastAPI."""
    # FastAPIOffline serves Swagger UI itself, so the documentation works without an internet connection.
    return FastAPIOffline(
        version=VERSION,
        dependencies=[Depends(refuse_unstorable_text)],
        redoc_url=None,
        max_body_size=MAX_BODY_BYTES,
        generate_unique_id_function=lambda route: route.name,
        swagger_ui_parameters=SWAGGER_UI,
        responses={"default": {"model": error, "description": "An error, with its code and what to do."}},
        **options,
    )
