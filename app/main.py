"""The service over HTTP: the API under /api/v1, the gateway under /v1, and what operators ask for."""

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi_offline import FastAPIOffline
from starlette.concurrency import run_in_threadpool

from app.aliases import endpoints as aliases
from app.datasets import endpoints as datasets
from app.deployments import endpoints as deployments
from app.http import error_responses, health
from app.http.auth import require_by_method
from app.http.gateway import GatewayMiddleware, add_gateway_paths, create_gateway
from app.http.metrics import VERSION
from app.http.middleware import API_PREFIX, RequestMiddleware
from app.jobs import endpoints as jobs
from app.keys import endpoints as keys
from app.models import endpoints as models
from app.presets import endpoints as presets
from app.routing_table import endpoints as routes
from app.runs import endpoints as runs
from app.scheduling.sweeper import Sweeper
from app.settings import get_settings
from app.storage import migrate
from app.storage.database import get_engine
from app.workers import endpoints as workers

DESCRIPTION = "Fine-tune, judge and serve language models."
TAGS = [
    {"name": "datasets", "description": "Immutable files of rows, each with its validation report."},
    {"name": "jobs", "description": "What a person asks for: stages that run one after another."},
    {"name": "runs", "description": "One stage being carried out: events, metrics, logs and checkpoints."},
    {"name": "models", "description": "Weights that can be served, with where they came from."},
    {"name": "presets", "description": "Settings that suit a kind of hardware or a family of models."},
    {"name": "deployments", "description": "Models kept ready on an engine."},
    {
        "name": "aliases",
        "description": "Names that lead to deployments and may be moved.",
    },
    {"name": "routes", "description": "What gateways ask: which engine answers for which name."},
    {"name": "generation", "description": "The OpenAI-compatible front to the deployments."},
    {"name": "workers", "description": "Who serves which queue, on what hardware."},
    {"name": "keys", "description": "API keys, which carry scopes and can be revoked."},
    {"name": "operations", "description": "Health, readiness and metrics."},
]


def create_app() -> FastAPI:
    """The whole service but its worker."""
    # Swagger UI comes from this service: a machine without the internet has its documentation too.
    app = FastAPIOffline(
        title="Tunesmith",
        version=VERSION,
        description=DESCRIPTION,
        openapi_tags=TAGS,
        lifespan=_lifespan,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
        swagger_ui_parameters={"tryItOutEnabled": True, "persistAuthorization": True},
        responses={
            "default": {
                "model": error_responses.ErrorResponse,
                "description": "What is wrong and what to do.",
            }
        },
    )
    app.state.stopping = threading.Event()
    app.state.gateway = create_gateway()
    error_responses.install_error_handlers(app)
    app.include_router(_api())
    app.include_router(health.router)
    # The last one added is the first to see a request.
    app.add_middleware(RequestMiddleware)
    app.add_middleware(GatewayMiddleware, gateway=app.state.gateway)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _api() -> APIRouter:
    api = APIRouter(prefix=API_PREFIX)
    for nouns in (datasets, jobs, runs, models, presets, deployments, aliases, workers):
        api.include_router(nouns.router, dependencies=[Depends(require_by_method)])
    for asked_by_others in (deployments.gateways, routes.router, keys.own, keys.router):
        api.include_router(asked_by_others)
    return api


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Migrate the embedded database and sweep; a team's database is migrated by `python -m app migrate`."""
    settings, engine = get_settings(), get_engine()
    if engine.dialect.name == "sqlite":
        await run_in_threadpool(migrate.upgrade_database, engine)
    sweeper = Sweeper(settings)
    sweeper.start()
    yield
    app.state.stopping.set()
    await run_in_threadpool(sweeper.stop)
    await app.state.gateway.aclose()
    engine.dispose()


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            tags=app.openapi_tags,
            routes=app.routes,
        )
        add_gateway_paths(schema)
        app.openapi_schema = schema
    return app.openapi_schema
