"""A run's events as server-sent events; `id` is the event's number, by which a client goes on."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlmodel import col
from starlette.concurrency import run_in_threadpool

from app.runs import service
from app.runs.schemas import EventView
from app.storage.database import read_session
from app.tables import Event, RunStatus

LOOK_SECONDS = 0.5
HEARTBEAT_SECONDS = 15.0
EVENTS_AT_ONCE = 500


@dataclass(frozen=True)
class EventBatch:
    """What a look at the database found."""

    events: Sequence[Event]
    status: RunStatus
    last_seq: int


def poll_events(run_id: str, after: int) -> EventBatch:
    """The run's next events; the session is closed before the stream waits. Raises RunNotFound."""
    with read_session() as session:
        run = service.get(session, run_id)
        following = select(Event).where(col(Event.run_id) == run_id, col(Event.seq) > after)
        events = session.scalars(following.order_by(col(Event.seq)).limit(EVENTS_AT_ONCE)).all()
        return EventBatch(events, run.status, run.event_seq)


async def stream_events(
    run_id: str, after: int, news: EventBatch, stopping: threading.Event
) -> AsyncIterator[bytes]:
    """Send what `look` found and what follows, until the run is finished or the service stops."""
    quiet_since = time.monotonic()
    while not stopping.is_set():
        for event in news.events:
            after = event.seq
            yield _frame(event)
        if news.status.finished and after >= news.last_seq:
            yield f"event: end\ndata: {json.dumps({'status': news.status})}\n\n".encode()
            return
        if news.events:
            quiet_since = time.monotonic()
        elif time.monotonic() - quiet_since >= HEARTBEAT_SECONDS:
            # A proxy cuts a connection that says nothing for long.
            quiet_since = time.monotonic()
            yield b": still here\n\n"
        if len(news.events) < EVENTS_AT_ONCE:
            await asyncio.sleep(LOOK_SECONDS)
        news = await run_in_threadpool(poll_events, run_id, after)


def _frame(event: Event) -> bytes:
    data = EventView.model_validate(event).model_dump_json()
    return f"id: {event.seq}\nevent: {event.type}\ndata: {data}\n\n".encode()
