"""The events of a run as server-sent events; `id` is the event's number, from which a client resumes."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from sqlalchemy import select
from sqlmodel import Session, col
from starlette.concurrency import run_in_threadpool

from app.http.errors import NotFound
from app.runs import service
from app.runs.schemas import EventView
from app.storage.database import read_session
from app.tables import Event, RunStatus

POLL_SECONDS = 0.5
# Proxies close a connection that is silent for a minute or less.
HEARTBEAT_SECONDS = 15.0
MAX_EVENTS_PER_POLL = 500
MEDIA_TYPE = "text/event-stream"
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

Cursor = TypeVar("Cursor")


@dataclass(frozen=True)
class EventBatch(Generic[Cursor]):
    """The result of one poll of the database."""

    frames: Sequence[bytes]
    cursor: Cursor
    """The position after these events, from which the next poll continues."""
    end: RunStatus | None
    """The final status, if there can be no more events."""


def poll_events(run_id: str, after: int) -> EventBatch[int]:
    """Return the next events of the run, with the session closed again; raises RunNotFound."""
    with read_session() as session:
        run = service.get_run(session, run_id)
        status, last_seq = run.status, run.event_seq
        events = read_events(session, run_id, after, MAX_EVENTS_PER_POLL)
    frames = [make_frame(str(event.seq), EventView.model_validate(event)) for event in events]
    seq = events[-1].seq if events else after
    return EventBatch(frames, seq, status if status.finished and seq >= last_seq else None)


def read_events(session: Session, run_id: str, after: int, limit: int) -> Sequence[Event]:
    """Return the first events of a run after a number."""
    statement = select(Event).where(col(Event.run_id) == run_id, col(Event.seq) > after)
    return session.scalars(statement.order_by(col(Event.seq)).limit(limit)).all()


def make_frame(id: str, event: EventView) -> bytes:
    """Return an event in the form of server-sent events."""
    return f"id: {id}\nevent: {event.type}\ndata: {event.model_dump_json()}\n\n".encode()


async def stream_events(
    poll: Callable[[Cursor], EventBatch[Cursor]], batch: EventBatch[Cursor], stopping: threading.Event
) -> AsyncIterator[bytes]:
    """Yield the events of the first poll and all later ones, until they end or the service stops."""
    last_sent = time.monotonic()
    while not stopping.is_set():
        for frame in batch.frames:
            yield frame
        if batch.end is not None:
            yield f"event: end\ndata: {json.dumps({'status': batch.end})}\n\n".encode()
            return
        if batch.frames:
            last_sent = time.monotonic()
        elif time.monotonic() - last_sent >= HEARTBEAT_SECONDS:
            last_sent = time.monotonic()
            yield b": heartbeat\n\n"
        if len(batch.frames) < MAX_EVENTS_PER_POLL:
            await asyncio.sleep(POLL_SECONDS)
        try:
            batch = await run_in_threadpool(poll, batch.cursor)
        except NotFound:
            # The job was deleted, which requires that its runs had ended.
            return
