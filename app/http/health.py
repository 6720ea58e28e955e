"""Liveness, readiness and metrics."""

import asyncio
import re
import time

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from app.hosts.readiness import HostsUnwell, check_hosts
from app.http import metrics
from app.http.auth import require_by_method
from app.http.edges.query import check_query
from app.models.starter import STARTER, read_starter_progress
from app.scheduling.availability import (
    LIMIT_SECONDS,
    NotMigrated,
    TimedCheck,
    check_database,
    check_store,
)
from app.scheduling.incidents import describe_error, list_problems
from app.scheduling.queue import check_broker
from app.storage.database import ReadSession
from app.workers import service as workers
from trainers.configs import Queue

router = APIRouter(tags=["operations"])

QUOTED = r"""(?<!\w)'[^']*'|"[^"]*\""""
ADDRESS = r"\b[\w.-]+:\d+\b|\b\d+\.\d+\.\d+\.\d+\b|, port \d+"
PATH = r"(?<![\w/])/[\w./-]+"
LOCATION = re.compile(f"(?:{QUOTED}|{ADDRESS}|{PATH})+")


class Health(BaseModel):
    """A response of a live process."""

    status: str = Field("ok", description="Always `ok`.")
    version: str = Field(metrics.VERSION, description="Version of the service.")


class Readiness(BaseModel):
    """The state of what the service depends on: each field is `ok`, or says what is wrong."""

    ready: bool = Field(
        description="Whether requests can be served: the database and the artifact store are available."
    )
    database: str = Field(description="Whether the database is reachable and migrated.")
    store: str = Field(description="Whether a file can be written to the artifact store and read again.")
    broker: str = Field(
        description="Whether notifications can be sent. Without them, runs start later, when workers poll."
    )
    workers: str = Field(description="Whether a worker is alive, and none of them reports a problem.")
    hosts: str = Field(
        description="Whether no host in a cloud is overdue, out of reach or held, and no machine unclaimed."
    )
    queues: list[Queue] = Field(description="Hardware that the live workers serve.")
    background: str = Field(description="Whether the threads and the worker of this process work.")
    examples: str = Field(
        description="Whether the example model that `--with-examples` asks for can be used, or how far its "
        "training is."
    )


UNREADY_EXAMPLE = {
    "ready": False,
    "database": "OperationalError: connection refused",
    "store": "ok",
    "broker": "ok",
    "workers": "unknown without the database",
    "hosts": "unknown without the database",
    "queues": [],
    "background": "sweeper: 3 failures, the last one: OperationalError: connection refused",
    "examples": "ok",
}


@router.get("/healthz", summary="Check that the process runs", dependencies=[Depends(check_query)])
def healthz() -> Health:
    """Return 200 while the process is up."""
    return Health()


@router.get(
    "/readyz",
    dependencies=[Depends(check_query)],
    summary="Check that the service can serve requests",
    response_model=Readiness,
    responses={
        503: {
            "model": Readiness,
            "description": "The database or the artifact store is unavailable.",
            "content": {"application/json": {"example": UNREADY_EXAMPLE}},
        }
    },
)
async def readyz(request: Request) -> JSONResponse:
    """Return 200 if the database and the artifact store are available, else 503.

    Each of them is tried with a time limit. A broker, worker or thread that fails is reported, but does not
    make the service unready.
    """
    readiness = await request.app.state.readiness.check()
    return JSONResponse(readiness.model_dump(), 200 if readiness.ready else 503)


@router.get(
    "/metrics",
    summary="Read metrics",
    dependencies=[Depends(require_by_method), Depends(check_query)],
    response_class=Response,
)
def exposition(request: Request, session: ReadSession) -> Response:
    """Return the metrics in Prometheus's text format. Requires the scope `read` once a key exists."""
    body = metrics.render_metrics(session, request.app.state.counted)
    return Response(body, media_type="text/plain; version=0.0.4; charset=utf-8")


def hide_locations(text: str) -> str:
    """Replace addresses, paths and quoted names: anyone may read `/readyz`. The log contains them."""
    return LOCATION.sub("…", text)


class ReadinessChecks:
    """The checks of one application, which all requests share."""

    def __init__(self) -> None:
        self._checks = {
            "database": _RecentState(TimedCheck("database", check_database), 1),
            # Each check of a remote store is three requests, which cost money.
            "store": _RecentState(TimedCheck("artifact store", check_store), 10),
            "broker": _RecentState(TimedCheck("broker", check_broker), 1),
            "workers": _RecentState(TimedCheck("workers", self._check_workers), 1),
            "hosts": _RecentState(TimedCheck("hosts", check_hosts), 1),
        }
        self._queues: list[Queue] = []

    async def check(self) -> Readiness:
        """Try everything at once; what hangs holds one thread, whatever the number of requests."""
        read = await asyncio.gather(*(check.read() for check in self._checks.values()))
        states = dict(zip(self._checks, read, strict=True))
        ready = states["database"] == states["store"] == "ok"
        states["background"] = "; ".join(list_problems()) or "ok"
        training = read_starter_progress()
        states["examples"] = f"training the model {STARTER}: {training}" if training else "ok"
        shown = {name: hide_locations(state) for name, state in states.items()}
        return Readiness.model_validate({"ready": ready, "queues": self._queues, **shown})

    def _check_workers(self) -> None:
        self._queues = []
        alive = workers.read_alive_workers()
        self._queues = workers.list_served_queues(alive)
        workers.check_workers(alive)


class _RecentState:
    """The state that a check found, while it is recent."""

    def __init__(self, check: TimedCheck, max_age_seconds: float) -> None:
        self._check = check
        self._max_age_seconds = max_age_seconds
        self._state = ""
        self._expires_at = 0.0

    async def read(self) -> str:
        if time.monotonic() < self._expires_at:
            return self._state
        try:
            async with asyncio.timeout(LIMIT_SECONDS):
                await asyncio.shield(asyncio.wrap_future(self._check.start()))
        except TimeoutError:
            self._state = f"no response within {LIMIT_SECONDS:g} s"
        except (NotMigrated, workers.WorkersUnwell, HostsUnwell) as error:
            self._state = str(error)
        except Exception as error:
            self._state = describe_error(error)
        else:
            self._state = "ok"
        self._expires_at = time.monotonic() + self._max_age_seconds
        return self._state
