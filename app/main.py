"""The HTTP application: the API under /api/v1, the gateway under /v1, health and metrics."""

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.openapi.utils import get_openapi
from prometheus_client import REGISTRY
from prometheus_client.registry import Collector as Counted
from starlette.concurrency import run_in_threadpool

from app.aliases import endpoints as aliases
from app.artifacts import endpoints as artifacts
from app.comparisons import endpoints as comparisons
from app.datasets import endpoints as datasets
from app.deployments import endpoints as deployments
from app.evals.imports import endpoints as eval_imports
from app.evaluations import endpoints as evaluations
from app.hosts import endpoints as hosts
from app.http import health
from app.http.auth import require_by_method
from app.http.documents.application import create_application
from app.http.documents.document import correct_document
from app.http.edges.middleware import EdgeMiddleware
from app.http.edges.query import check_query
from app.http.error_responses import ErrorResponse, install_error_handlers
from app.http.gateway import GatewayMiddleware, add_gateway_paths, create_gateway
from app.http.middleware import API_PREFIX, RequestMiddleware
from app.http.response_examples import add_response_examples
from app.jobs import endpoints as jobs
from app.jobs.replays import endpoints as replays
from app.keys import endpoints as keys
from app.models import endpoints as models
from app.openai_api.application import PREFIX as OPENAI_PREFIX
from app.openai_api.application import create_openai_app
from app.presets import endpoints as presets
from app.rescues import endpoints as rescues
from app.retention.collector import Collector
from app.routing_table import endpoints as routes
from app.runs import endpoints as runs
from app.scheduling.startup import Preparation
from app.scheduling.sweeper import create_sweeper
from app.settings import get_settings
from app.storage import endpoints as storage
from app.storage.database import get_engine
from app.web.application import mount_pages, share_state
from app.webhooks import endpoints as webhooks
from app.webhooks.sender import WebhookSender
from app.worker_credentials import endpoints as worker_credentials
from app.worker_credentials.reconciler import create_reconciler
from app.workers import endpoints as workers
from serving.gateway.rate_limits import RateLimits
from serving.http.cross_site import OriginPolicy

DESCRIPTION = (
    "Fine-tune, evaluate and serve language models. Begin with [POST /api/v1/jobs](#/jobs/create_job): its "
    "examples cover the worked cases and each stage. After `python -m app --with-examples`, those with the "
    "model `starter` work without changes. Unknown fields and query parameters are errors, and the values of "
    "a body are not converted: a number as text is not a number."
)
TAGS = [
    {"name": "datasets", "description": "Immutable files of rows, each with a validation report."},
    {"name": "jobs", "description": "Ordered lists of stages, such as training, evaluation and deployment."},
    {"name": "runs", "description": "Executions of one stage: events, metrics, logs and checkpoints."},
    {"name": "models", "description": "Weights that can be served, with their lineage."},
    {
        "name": "evaluations",
        "description": "Scores of models with their rows and reports, and comparisons of them.",
    },
    {"name": "presets", "description": "Settings for a kind of hardware or a model family."},
    {"name": "deployments", "description": "Models kept ready on an engine."},
    {"name": "aliases", "description": "Names that route to deployments and can be changed at any time."},
    {
        "name": "routes",
        "description": "The routing table of gateways: model names and the engines that serve them.",
    },
    {"name": "generation", "description": "The OpenAI-compatible API of the deployments."},
    {"name": "hosts", "description": "Machines that the service launches in clouds, and what they cost."},
    {"name": "workers", "description": "Worker processes, with their queues and hardware."},
    {"name": "webhooks", "description": "Addresses that receive signed events, and their deliveries."},
    {"name": "evals", "description": "Imports of evals that were exported from OpenAI."},
    {"name": "storage", "description": "Disk space, and the collection of what is no longer needed."},
    {"name": "artifacts", "description": "Files of workers that reach neither the bucket nor a shared disk."},
    {"name": "rescues", "description": "Models that move from OpenAI to this service, and their comparison."},
    {"name": "keys", "description": "API keys with scopes and limits."},
    {"name": "operations", "description": "Health, readiness and metrics."},
]


def create_app(limits: RateLimits | None = None, counted: Counted = REGISTRY) -> FastAPI:
    """Create the HTTP application.

    Several processes on one port share the `limits` of API keys; `counted` are the metrics of all of them.
    """
    app = create_application(
        ErrorResponse,
        title="Tunesmith",
        description=DESCRIPTION,
        openapi_tags=TAGS,
        lifespan=_lifespan,
    )
    install_error_handlers(app)
    _include_api(app)
    app.include_router(health.router)
    app.mount(OPENAI_PREFIX, create_openai_app())
    mount_pages(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    configure_app(app, limits, counted)
    return app


def configure_app(app: FastAPI, limits: RateLimits | None = None, counted: Counted = REGISTRY) -> None:
    """Apply the settings, in place of earlier ones: tests serve one application with the settings of each."""
    origins = OriginPolicy(get_settings().allowed_origins)
    app.state.stopping = threading.Event()
    app.state.gateway = create_gateway(origins, limits or RateLimits())
    share_state(app)
    app.state.counted = counted
    app.state.readiness = health.ReadinessChecks()
    app.middleware_stack = None
    app.user_middleware.clear()
    # The middleware added last receives a request first.
    app.add_middleware(EdgeMiddleware, origins=origins)
    app.add_middleware(RequestMiddleware)
    app.add_middleware(GatewayMiddleware, gateway=app.state.gateway)


def _include_api(app: FastAPI) -> None:
    """Include the routers one by one: FastAPI reads every route of a router of routers for each request."""
    nouns = (
        datasets,
        replays,  # Its path /jobs/diff comes before /jobs/{id}.
        jobs,
        runs,
        models,
        evaluations,
        comparisons,
        presets,
        deployments,
        aliases,
        workers,
        storage,
        webhooks,
        eval_imports,
    )
    for router in (*(noun.router for noun in nouns), workers.queue_router):
        checks = [Depends(require_by_method), Depends(check_query)]
        app.include_router(router, prefix=API_PREFIX, dependencies=checks)
    # These routers state the scopes that they require. The query is checked after the key.
    for router in (
        deployments.gateways,
        routes.router,
        routes.traffic_router,
        keys.own_key_router,
        keys.token_use_router,
        keys.router,
        rescues.router,
        hosts.router,
        worker_credentials.router,
        artifacts.router,
    ):
        app.include_router(router, prefix=API_PREFIX)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Prepare the database, and run the sweeper, the garbage collector and the sender of webhooks.

    While the database is unavailable, requests get 503.
    """
    sweeper, preparation = create_sweeper(get_settings()), Preparation()
    await run_in_threadpool(preparation.start)
    sweeper.start()
    collector = Collector(get_settings())
    collector.start()
    sender = WebhookSender(get_settings())
    sender.start()
    reconciler = create_reconciler()
    reconciler.start()
    yield
    app.state.stopping.set()
    await run_in_threadpool(preparation.stop)
    await run_in_threadpool(sweeper.stop)
    await run_in_threadpool(collector.stop)
    await run_in_threadpool(sender.stop)
    await run_in_threadpool(reconciler.stop)
    await app.state.gateway.aclose()
    with suppress(OSError):
        get_engine().dispose()


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
        add_response_examples(schema)
        correct_document(schema)
        # FastAPI removes null from examples.
        limits = schema["paths"][f"{API_PREFIX}/keys/{{key_id}}"]["patch"]["requestBody"]
        limits["content"]["application/json"]["examples"] = keys.UPDATE_EXAMPLES
        app.openapi_schema = schema
    return app.openapi_schema
