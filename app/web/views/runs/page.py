"""The page of a run: its state, its curves and its log, live."""

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import Header, Path, Query, Request, Response
from sqlmodel import Session

from app.downloads.response import download_response
from app.jobs import actions
from app.jobs import service as jobs
from app.jobs.actions import ActionState
from app.runs import files, service
from app.runs.curves import points
from app.runs.schemas import RunView, RunWarningView
from app.settings import get_settings
from app.storage.database import ReadSession
from app.tables import RunStatus
from app.web.live import LiveView, Parts, Version, event_stream, open_stream
from app.web.rendering import render_macro, render_page
from app.web.views.outcomes import find_evaluations
from app.web.views.runs.stream import RunPoll, encode_points
from app.web.visitor import CurrentVisitor, Visitor, view_router
from app.workers.names import name_workers

PARTS = "runs/parts.jinja"
MAX_LINES = 500
POINTS_PER_REQUEST = 5000

router = view_router()

RunId = Annotated[str, Path(pattern=r"^run_[0-9a-z]{1,40}$")]
Seq = Annotated[int, Query(ge=0, lt=2**31)]


@dataclass(frozen=True)
class RunStageLink:
    """A run of the same job."""

    run_id: str
    name: str
    status: RunStatus


@dataclass(frozen=True)
class RunState:
    """A run, and what can be done with its job."""

    run: RunView
    job_name: str
    actions: list[ActionState]
    worker: str | None
    warnings: list[RunWarningView]
    further_warnings: int
    stages: list[RunStageLink]
    evaluations: Mapping[str, str]


@router.get("/runs/{run_id}")
def show_run(request: Request, session: ReadSession, visitor: CurrentVisitor, run_id: RunId) -> Response:
    """Show a run."""
    # The lines are read first: what is written meanwhile is part of the stream.
    lines, seq = points.list_last_lines(session, run_id, MAX_LINES)
    state = _load(session, run_id)
    parts = _render(state, visitor)
    return render_page(request, "runs/page.jinja", state=state, parts=parts, lines=lines, seq=seq)


@router.get("/runs/{run_id}/stream")
def stream(
    request: Request,
    run_id: RunId,
    version: Version = "",
    after_event: Seq = 0,
    last_event_id: Annotated[int | None, Header(ge=0, lt=2**31)] = None,
) -> Response:
    """Stream the parts that change, the points of the curves and the lines of the log."""
    view = LiveView(lambda session: _load(session, run_id), _render)
    after = after_event if last_event_id is None else last_event_id
    poll = RunPoll(request, view, version, run_id, after)
    return event_stream(open_stream(poll, request.app.state.stopping))


@router.get("/runs/{run_id}/points")
def list_points(request: Request, session: ReadSession, run_id: RunId, after: Seq = 0) -> Response:
    """Return the points of the curves, by column."""
    found, following = points.list_points(session, run_id, after, POINTS_PER_REQUEST)
    body = encode_points(found, following).encode()
    headers = {"Vary": "Accept-Encoding"}
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["Content-Encoding"] = "gzip"
        body = gzip.compress(body, 1)
    return Response(body, headers=headers, media_type="application/json")


@router.get("/runs/{run_id}/files/{name}")
def download_file(
    request: Request,
    run_id: RunId,
    name: Annotated[str, Path(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$", max_length=255)],
) -> Response:
    """Download a file of the run's last attempt, such as `log.txt`."""
    return download_response(request.headers, files.find_file(run_id, name))


def _load(session: Session, run_id: str) -> RunState:
    run = service.view_run(session, get_settings(), run_id)
    runs = jobs.list_runs(session, run.job_id)
    warnings, further = service.list_warnings(session, [each for each in runs if each.id == run_id])
    return RunState(
        run=run,
        job_name=jobs.get_job(session, run.job_id).name,
        actions=actions.list_actions(runs),
        worker=name_workers(session, [run.worker_id]).get(run.worker_id or ""),
        warnings=warnings,
        further_warnings=further,
        stages=[RunStageLink(each.id, each.name, each.status) for each in runs],
        evaluations=find_evaluations(session, run.job_id),
    )


def _render(state: RunState, visitor: Visitor) -> Parts:
    names = {"run-head": "head", "run-progress": "progress", "run-metrics": "metrics", "run-facts": "facts"}
    return Parts(
        parts={
            part: render_macro(visitor.language, PARTS, macro, state, visitor)
            for part, macro in names.items()
        }
    )
