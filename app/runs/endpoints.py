"""Runs over HTTP."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request
from fastapi.responses import StreamingResponse

from app.http.paging import EventPaging, Page, Paging
from app.runs import service
from app.runs.schemas import (
    CheckpointView,
    EventView,
    LogView,
    MetricsView,
    RunView,
    log_view,
    metrics_view,
)
from app.runs.stream import poll_events, stream_events
from app.settings import get_settings
from app.storage.database import ReadSession
from app.tables import EventType

router = APIRouter(prefix="/runs", tags=["runs"])

Responses = dict[int | str, dict[str, Any]]
EVENT_STREAM: Responses = {
    200: {
        "description": "`id` is an event's `seq`, `event` its type, `data` its JSON. `event: end` ends it.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}
FILE: Responses = {
    200: {"description": "The file.", "content": {"text/plain": {"schema": {"type": "string"}}}}
}


@router.get("/{run_id}")
def get_run(run_id: str, session: ReadSession) -> RunView:
    """One stage being carried out: status, progress, error and result."""
    return service.show(session, get_settings(), run_id)


@router.get("/{run_id}/events")
def list_events(
    run_id: str,
    session: ReadSession,
    paging: EventPaging,
    type: Annotated[list[EventType] | None, Query(description="Only these types.")] = None,
) -> Page[EventView]:
    """All facts about a run, from the first on."""
    found, following = service.events(session, run_id, paging, type)
    return Page(items=[EventView.model_validate(event) for event in found], next=following)


@router.get("/{run_id}/metrics")
def list_metrics(run_id: str, session: ReadSession, paging: EventPaging) -> Page[MetricsView]:
    """What the program measured, from the first step on."""
    found, following = service.events(session, run_id, paging, [EventType.metrics])
    return Page(items=[metrics_view(event) for event in found], next=following)


@router.get("/{run_id}/logs")
def list_logs(run_id: str, session: ReadSession, paging: EventPaging) -> Page[LogView]:
    """What the program wrote, from the first line on; the whole log is the file `log.txt`."""
    found, following = service.events(session, run_id, paging, [EventType.log])
    return Page(items=[log_view(event) for event in found], next=following)


@router.get("/{run_id}/files/{name}", responses=FILE, response_class=StreamingResponse)
def download_file(
    run_id: str, name: Annotated[str, Path(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")], session: ReadSession
) -> StreamingResponse:
    """A file that the program left: `log.txt`, `events.jsonl`, or one that its result names."""
    content = service.file_content(service.file_artifact(session, run_id, name))
    headers = {"Content-Disposition": f'attachment; filename="{run_id}-{name}"'}
    return StreamingResponse(content, media_type="text/plain; charset=utf-8", headers=headers)


@router.get("/{run_id}/checkpoints")
def list_checkpoints(run_id: str, session: ReadSession, paging: Paging) -> Page[CheckpointView]:
    """States from which the run can go on, from new to old."""
    found, following = service.checkpoints(session, run_id, paging)
    return Page(items=[CheckpointView.model_validate(checkpoint) for checkpoint in found], next=following)


@router.get("/{run_id}/stream", responses=EVENT_STREAM, response_class=StreamingResponse)
def stream_run(
    run_id: str,
    request: Request,
    after: Annotated[int, Query(ge=0, lt=2**31, description="`seq` of the last event that is known.")] = 0,
    last_event_id: Annotated[int | None, Header(ge=0, lt=2**31)] = None,
) -> StreamingResponse:
    """Events of a run as they happen; a client that reconnects with `Last-Event-ID` misses none."""
    known = after if last_event_id is None else last_event_id
    events = stream_events(run_id, known, poll_events(run_id, known), request.app.state.stopping)
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)
