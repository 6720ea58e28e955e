"""Liveness, readiness and metrics."""

from fastapi import APIRouter, Depends, Response
from fastapi.responses import JSONResponse
from kombu.exceptions import OperationalError as BrokerUnreachable
from pydantic import BaseModel, Field
from sqlalchemy.exc import OperationalError

from app.http import metrics
from app.http.auth import require_by_method
from app.scheduling.queue import get_celery
from app.storage import migrate
from app.storage.database import ReadSession, get_engine

router = APIRouter(tags=["operations"])


class Health(BaseModel):
    """A response of a live process."""

    status: str = Field("ok", description="Always `ok`.")
    version: str = Field(metrics.VERSION, description="Version of the service.")


class Readiness(BaseModel):
    """The state of the servers that the service depends on."""

    ready: bool = Field(description="Whether the database is reachable and migrated.")
    database: str = Field(description="`ok`, or the reason why not.")
    broker: str = Field(
        description="`ok`, or the reason why not. Without it, runs start later, when workers poll."
    )


@router.get("/healthz", summary="Check that the process runs")
def healthz() -> Health:
    """Return 200 while the process is up."""
    return Health()


@router.get(
    "/readyz",
    summary="Check that the service can serve requests",
    response_model=Readiness,
    responses={
        503: {
            "model": Readiness,
            "description": "The database is unreachable, or needs a migration.",
            "content": {
                "application/json": {"example": {"ready": False, "database": "unreachable", "broker": "ok"}}
            },
        }
    },
)
def readyz() -> JSONResponse:
    """Return 200 if the database is reachable and migrated, else 503.

    An unreachable broker is reported, but does not make the service unready.
    """
    database, broker = _check_database(), _check_broker()
    readiness = Readiness(ready=database == "ok", database=database, broker=broker)
    return JSONResponse(readiness.model_dump(), 200 if readiness.ready else 503)


@router.get(
    "/metrics", summary="Read metrics", dependencies=[Depends(require_by_method)], response_class=Response
)
def exposition(session: ReadSession) -> Response:
    """Return the metrics in Prometheus's text format. Requires the scope `read` once a key exists."""
    return Response(metrics.render_metrics(session), media_type="text/plain; version=0.0.4; charset=utf-8")


def _check_database() -> str:
    try:
        current, head = migrate.get_revisions(get_engine())
    except OperationalError:
        return "unreachable"
    return "ok" if current == head else f"at revision {current}, not {head}: run `python -m app migrate`"


def _check_broker() -> str:
    try:
        with get_celery().connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=2)
    except BrokerUnreachable:
        return "unreachable"
    return "ok"
