"""Live pages: a stream of server-sent events with the parts of a page that have changed.

A stream reads the state of its page every second, with a session and a thread for the time of the reading. It
renders only if the state has changed, and sends only the parts that differ from those that it
has sent. Each poll checks the login again. `static/live.js` is the other end.
"""

import asyncio
import hashlib
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse, StreamingResponse
from sqlmodel import Session
from starlette.concurrency import run_in_threadpool

from app.http.errors import Forbidden, NotFound, Unauthorized
from app.runs.stream import HEARTBEAT_SECONDS, MEDIA_TYPE, STREAM_HEADERS
from app.storage.database import DATABASE_UNAVAILABLE, read_session
from app.web.rendering import is_htmx, render_partial
from app.web.static_files import files_hash
from app.web.visitor import Visitor, get_visitor

State = TypeVar("State")

# Of the parts that a page has: see `Parts.version`.
Version = Annotated[str, Query(max_length=64)]

POLL_SECONDS = 1.0
# A browser that lost its stream tries again after this time.
RETRY_MILLISECONDS = 2000


@dataclass
class Parts:
    """The HTML of the parts of a page, each of one element, by the id of that element.

    `rows` are the children of the element `table`: if one is added, removed or moved, all are sent.
    """

    parts: dict[str, str] = field(default_factory=dict)
    rows: dict[str, str] = field(default_factory=dict)
    table: str = ""
    empty: str = ""
    """Shown in the table in the place of rows."""

    def version(self) -> str:
        """Return a hash of all parts: a page that was rendered from the same ones needs no update."""
        content = json.dumps([self.parts, self.rows, self.empty if not self.rows else ""])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def render_changes(self, before: "Parts | None") -> str:
        """Return what htmx must swap on a page with the parts `before`, or on one with unknown parts."""
        old = before or Parts()
        changed = [
            render_partial(name, html) for name, html in self.parts.items() if old.parts.get(name) != html
        ]
        if before is None or list(old.rows) != list(self.rows):
            if self.table:
                content = "".join(self.rows.values()) or self.empty
                changed.append(render_partial(self.table, content, "innerMorph"))
        else:
            changed += [render_partial(name, row) for name, row in self.rows.items() if old.rows[name] != row]
        return "".join(changed)


@dataclass(frozen=True)
class LiveView(Generic[State]):
    """A page that changes: how its state is read by the services, and how its parts are rendered."""

    load: Callable[[Session], State]
    render: Callable[[State, Visitor], Parts]


def show_changes(
    request: Request, session: Session, visitor: Visitor, view: LiveView[Any], page: str
) -> Response:
    """Return the parts of a page after a form of htmx has changed something, or else the way to the page."""
    if not is_htmx(request):
        return RedirectResponse(page, 303)
    return HTMLResponse(view.render(view.load(session), visitor).render_changes(None))


def stream_view(request: Request, view: LiveView[Any], version: str) -> StreamingResponse:
    """Return the stream of a page that was rendered from the parts with this version."""
    stopping: threading.Event = request.app.state.stopping
    return event_stream(open_stream(Poll(request, view, version), stopping))


def event_stream(events: AsyncIterator[bytes]) -> StreamingResponse:
    """Return a response with server-sent events."""
    headers = {**STREAM_HEADERS, "Cache-Control": "no-store"}
    return StreamingResponse(events, media_type=MEDIA_TYPE, headers=headers)


def make_event(name: str, data: str = "", id: str | None = None) -> bytes:
    """Return an event whose data may have several lines."""
    lines = [f"event: {name}", *(f"data: {line}" for line in data.split("\n"))]
    if id is not None:
        lines.insert(0, f"id: {id}")
    return ("\n".join(lines) + "\n\n").encode()


class Poll(Generic[State]):
    """The position of one stream: the state and the parts that its page has."""

    def __init__(self, request: Request, view: LiveView[State], version: str) -> None:
        self._request = request
        self._view = view
        self._version = version
        self._state: State | None = None
        self._parts: Parts | None = None

    def read(self) -> Sequence[bytes]:
        """Return the events that bring the page up to date."""
        visitor = get_visitor(self._request)
        with read_session() as session:
            state = self._view.load(session)
        if state == self._state:
            return ()
        before, self._state = self._parts, state
        self._parts = parts = self._view.render(state, visitor)
        if before is None and parts.version() == self._version:
            return ()
        html = parts.render_changes(before)
        return (make_event("parts", html),) if html else ()


async def open_stream(poll: Poll[Any], stopping: threading.Event) -> AsyncIterator[bytes]:
    """Yield the events of a stream, which begins with the version of the static files."""
    yield f"retry: {RETRY_MILLISECONDS}\n\n".encode() + make_event("hello", files_hash())
    async for events in poll_until_stopped(poll.read, stopping):
        for event in events:
            yield event


async def poll_until_stopped(
    read: Callable[[], Sequence[bytes]], stopping: threading.Event, seconds: float = POLL_SECONDS
) -> AsyncIterator[Sequence[bytes]]:
    """Yield what each poll returns, and the events of a stream whose database, page or login is gone."""
    last_sent, is_away = time.monotonic(), False
    while not stopping.is_set():
        try:
            events = await run_in_threadpool(read)
        except DATABASE_UNAVAILABLE:
            events = () if is_away else (make_event("away"),)
            is_away = True
        except NotFound:
            yield (make_event("gone"),)
            return
        except (Unauthorized, Forbidden):
            yield (make_event("logged-out"),)
            return
        else:
            if is_away:
                events = (make_event("back"), *events)
            is_away = False
        if not events and time.monotonic() - last_sent >= HEARTBEAT_SECONDS:
            events = (make_event("ping"),)
        if events:
            last_sent = time.monotonic()
            yield events
        await asyncio.sleep(seconds)
