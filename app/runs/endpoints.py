"""Runs over HTTP."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse

from app.db import Reading
from app.paging import EventPaging, Page, Paging
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
from app.runs.stream import look, stream
from app.settings import get_settings
from app.tables import EventType

router = APIRouter(prefix="/runs", tags=["runs"])

Responses = dict[int | str, dict[str, Any]]
EVENT_STREAM: Responses = {
    200: {
        "description": "`id` is an event's `seq`, `event` its type, `data` its JSON. `event: end` ends it.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}
LOG_FILE: Responses = {
    200: {
        "description": "A page of lines, or the file.",
        "content": {"text/plain": {"schema": {"type": "string"}}},
    }
}


@router.get("/{run_id}")
def show(run_id: str, session: Reading) -> RunView:
    """One stage being carried out: status, progress, error and result."""
    return service.show(session, get_settings(), run_id)


@router.get("/{run_id}/events")
def events(
    run_id: str,
    session: Reading,
    paging: EventPaging,
    type: Annotated[list[EventType] | None, Query(description="Only these types.")] = None,
) -> Page[EventView]:
    """All facts about a run, from the first on."""
    found, following = service.events(session, run_id, paging, type)
    return Page(items=[EventView.model_validate(event) for event in found], next=following)


@router.get("/{run_id}/metrics")
def metrics(run_id: str, session: Reading, paging: EventPaging) -> Page[MetricsView]:
    """What the program measured, from the first step on."""
    found, following = service.events(session, run_id, paging, [EventType.metrics])
    return Page(items=[metrics_view(event) for event in found], next=following)


@router.get("/{run_id}/logs", response_model=Page[LogView], responses=LOG_FILE)
def logs(
    run_id: str,
    session: Reading,
    paging: EventPaging,
    download: Annotated[
        bool, Query(description="Answer with the whole log as text; it exists when the run has ended.")
    ] = False,
) -> Page[LogView] | StreamingResponse:
    """What the program wrote, from the first line on."""
    if download:
        return _log_file(run_id, service.log_artifact(session, run_id))
    found, following = service.events(session, run_id, paging, [EventType.log])
    return Page(items=[log_view(event) for event in found], next=following)


@router.get("/{run_id}/checkpoints")
def checkpoints(run_id: str, session: Reading, paging: Paging) -> Page[CheckpointView]:
    """States from which the run can go on, from new to old."""
    found, following = service.checkpoints(session, run_id, paging)
    return Page(items=[CheckpointView.model_validate(checkpoint) for checkpoint in found], next=following)


@router.get("/{run_id}/stream", responses=EVENT_STREAM, response_class=StreamingResponse)
def follow(
    run_id: str,
    request: Request,
    after: Annotated[int, Query(ge=0, lt=2**31, description="`seq` of the last event that is known.")] = 0,
    last_event_id: Annotated[int | None, Header(ge=0, lt=2**31)] = None,
) -> StreamingResponse:
    """Events of a run as they happen; a client that reconnects with `Last-Event-ID` misses none."""
    known = after if last_event_id is None else last_event_id
    events = stream(run_id, known, look(run_id, known), request.app.state.stopping)
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


def _log_file(run_id: str, key: str) -> StreamingResponse:
    headers = {"Content-Disposition": f'attachment; filename="{run_id}.log"'}
    return StreamingResponse(
        service.log_content(key), media_type="text/plain; charset=utf-8", headers=headers
    )
