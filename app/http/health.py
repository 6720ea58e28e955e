"""Whether the process is up, whether it can do its work, and what it has counted."""

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
    """The process answers."""

    status: str = "ok"
    version: str = metrics.VERSION


class Readiness(BaseModel):
    """What the service needs, and whether it has it."""

    ready: bool
    database: str = Field(description="`ok`, or why not.")
    broker: str = Field(
        description="`ok`, or why not; without it runs start later, when workers look themselves."
    )


@router.get("/healthz")
def healthz() -> Health:
    """The process is up."""
    return Health()


@router.get("/readyz", responses={503: {"model": Readiness}})
def readyz() -> JSONResponse:
    """The database answers and is migrated. A broker out of reach is told, but stops nothing."""
    database, broker = _database(), _broker()
    readiness = Readiness(ready=database == "ok", database=database, broker=broker)
    return JSONResponse(readiness.model_dump(), 200 if readiness.ready else 503)


@router.get("/metrics", dependencies=[Depends(require_by_method)], response_class=Response)
def exposition(session: ReadSession) -> Response:
    """Prometheus's text format; needs the scope `read` once a key exists."""
    return Response(metrics.render_metrics(session), media_type="text/plain; version=0.0.4; charset=utf-8")


def _database() -> str:
    try:
        current, head = migrate.get_revisions(get_engine())
    except OperationalError:
        return "cannot be reached"
    return "ok" if current == head else f"at revision {current}, not {head}: run `python -m app migrate`"


def _broker() -> str:
    try:
        with get_celery().connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=2)
    except BrokerUnreachable:
        return "cannot be reached"
    return "ok"
