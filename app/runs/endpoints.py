"""Runs over HTTP."""

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from app.checkpoints import service as checkpoints
from app.checkpoints.schemas import CheckpointView
from app.downloads.response import download_response, download_responses
from app.http.paging import EventPaging, Page, Paging
from app.runs import files, listing, service
from app.runs.listing import RunFilters, run_filters
from app.runs.schemas import (
    EventView,
    LogView,
    MetricsView,
    RunFilesView,
    RunSummaryView,
    RunView,
    log_view,
    metrics_view,
    run_summary_view,
)
from app.runs.stream import MEDIA_TYPE, STREAM_HEADERS, poll_events, stream_events
from app.settings import get_settings
from app.storage.database import ReadSession
from app.tables import EventType

router = APIRouter(prefix="/runs", tags=["runs"])

RunId = Annotated[str, Path(description="Id of the run, `run_…`.")]
FileName = Annotated[
    str,
    Path(
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$",
        max_length=255,
        description="Name of the file: `log.txt`, `events.jsonl`, or one that the run's `result` names.",
    ),
]
EVENT_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Server-sent events: `id` is an event's `seq`, `event` its type and `data` the event "
        "as JSON. The last one is `event: end`.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


@router.get("")
def list_runs(
    session: ReadSession, paging: Paging, filters: Annotated[RunFilters, Depends(run_filters)]
) -> Page[RunSummaryView]:
    """List the runs of all jobs, newest first."""
    runs, after = listing.list_runs(session, paging, filters)
    return Page(items=[run_summary_view(run) for run in runs], next=after)


@router.get("/{run_id}")
def get_run(run_id: RunId, session: ReadSession) -> RunView:
    """Return a run: its status, progress, error and result."""
    return service.view_run(session, get_settings(), run_id)


@router.get("/{run_id}/events")
def list_events(
    run_id: RunId,
    session: ReadSession,
    paging: EventPaging,
    type: Annotated[list[EventType] | None, Query(description="Return only events of these types.")] = None,
) -> Page[EventView]:
    """List the events of a run, oldest first."""
    events, after = service.list_events(session, run_id, paging, type)
    return Page(items=[EventView.model_validate(event) for event in events], next=after)


@router.get("/{run_id}/metrics")
def list_metrics(run_id: RunId, session: ReadSession, paging: EventPaging) -> Page[MetricsView]:
    """List the metrics that the program logged, oldest first."""
    events, after = service.list_events(session, run_id, paging, [EventType.metrics])
    return Page(items=[metrics_view(event) for event in events], next=after)


@router.get("/{run_id}/logs")
def list_logs(run_id: RunId, session: ReadSession, paging: EventPaging) -> Page[LogView]:
    """List the log lines of the program, oldest first; the file `log.txt` contains the whole log."""
    events, after = service.list_events(session, run_id, paging, [EventType.log])
    return Page(items=[log_view(event) for event in events], next=after)


@router.get("/{run_id}/files")
def list_run_files(run_id: RunId) -> RunFilesView:
    """List the files of the run's last attempt: its log, its events, and what its result names."""
    return files.list_files(run_id)


@router.get(
    "/{run_id}/files/{name}",
    responses=download_responses(files.TEXT, "The file."),
    response_class=Response,
)
def download_file(request: Request, run_id: RunId, name: FileName) -> Response:
    """Download a file of the run's last attempt: `log.txt`, `events.jsonl`, or one named in its result.

    The completions of the stages `generate` and `evaluate` are such files. `Range` continues a download that
    was interrupted.
    """
    return download_response(request.headers, files.find_file(run_id, name))


@router.get("/{run_id}/checkpoints")
def list_checkpoints(run_id: RunId, session: ReadSession, paging: Paging) -> Page[CheckpointView]:
    """List the checkpoints from which the run can resume, newest first."""
    views, after = checkpoints.list_checkpoints(session, run_id, paging)
    return Page(items=views, next=after)


@router.get("/{run_id}/stream", responses=EVENT_STREAM, response_class=StreamingResponse)
def stream_run(
    run_id: RunId,
    request: Request,
    after: Annotated[int, Query(ge=0, lt=2**31, description="Start after the event with this `seq`.")] = 0,
    last_event_id: Annotated[
        int | None, Header(ge=0, lt=2**31, description="As `after`; sent by a client that reconnects.")
    ] = None,
) -> StreamingResponse:
    """Stream the events of a run; a client that reconnects with `Last-Event-ID` misses none."""
    last_seq = after if last_event_id is None else last_event_id
    poll = partial(poll_events, run_id)
    events = stream_events(poll, poll(last_seq), request.app.state.stopping)
    return StreamingResponse(events, media_type=MEDIA_TYPE, headers=STREAM_HEADERS)
