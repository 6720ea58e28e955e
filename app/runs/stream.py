"""The events of a run as server-sent events; `id` is the event's number, from which a client resumes."""

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

POLL_SECONDS = 0.5
# Proxies close a connection that is silent for a minute or less.
HEARTBEAT_SECONDS = 15.0
MAX_EVENTS_PER_POLL = 500


@dataclass(frozen=True)
class EventBatch:
    """The result of one poll of the database."""

    events: Sequence[Event]
    status: RunStatus
    last_seq: int


def poll_events(run_id: str, after: int) -> EventBatch:
    """Return the next events of the run, with the session closed again; raises RunNotFound."""
    with read_session() as session:
        run = service.get_run(session, run_id)
        statement = select(Event).where(col(Event.run_id) == run_id, col(Event.seq) > after)
        events = session.scalars(statement.order_by(col(Event.seq)).limit(MAX_EVENTS_PER_POLL)).all()
        return EventBatch(events, run.status, run.event_seq)


async def stream_events(
    run_id: str, after: int, batch: EventBatch, stopping: threading.Event
) -> AsyncIterator[bytes]:
    """Yield the events of the first poll and all later ones, until the run ends or the service stops."""
    last_sent = time.monotonic()
    while not stopping.is_set():
        for event in batch.events:
            after = event.seq
            yield _frame(event)
        if batch.status.finished and after >= batch.last_seq:
            yield f"event: end\ndata: {json.dumps({'status': batch.status})}\n\n".encode()
            return
        if batch.events:
            last_sent = time.monotonic()
        elif time.monotonic() - last_sent >= HEARTBEAT_SECONDS:
            last_sent = time.monotonic()
            yield b": heartbeat\n\n"
        if len(batch.events) < MAX_EVENTS_PER_POLL:
            await asyncio.sleep(POLL_SECONDS)
        try:
            batch = await run_in_threadpool(poll_events, run_id, after)
        except service.RunNotFound:
            # Its job was deleted, which requires that the run had ended.
            return


def _frame(event: Event) -> bytes:
    data = EventView.model_validate(event).model_dump_json()
    return f"id: {event.seq}\nevent: {event.type}\ndata: {data}\n\n".encode()
