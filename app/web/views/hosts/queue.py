"""The page of a queue: all runs that wait for it, in the order of their start, and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import Query, Request, Response
from sqlmodel import Session

from app.http.paging import PageQuery
from app.settings import get_settings
from app.storage.database import ReadSession
from app.web.live import LiveView, Parts, Version, stream_view
from app.web.rendering import render_macro, render_page
from app.web.visitor import CurrentVisitor, Visitor, view_router
from app.workers.queues import list_queues, list_waiting_runs
from app.workers.schemas import QueueView, WaitingRunView
from app.workers.service import AliveWorkers
from trainers.configs import Queue

PARTS = "hosts/parts.jinja"

router = view_router()

AfterRun = Annotated[str | None, Query(pattern=r"^run_[0-9a-z]{26}$")]


@dataclass(frozen=True)
class QueuePage:
    """A queue with a page of the runs that wait for it."""

    queue: QueueView
    runs: Sequence[WaitingRunView]
    next: str | None


@router.get("/hosts/queues/{queue}")
def show_queue(
    request: Request, session: ReadSession, visitor: CurrentVisitor, queue: Queue, after: AfterRun = None
) -> Response:
    """Show the runs that wait for a queue."""
    view = _queue_view(queue, after)
    state = view.load(session)
    parts = view.render(state, visitor)
    return render_page(request, "hosts/queue.jinja", state=state, parts=parts, after=after)


@router.get("/hosts/queues/{queue}/stream")
def stream_queue(request: Request, queue: Queue, after: AfterRun = None, version: Version = "") -> Response:
    """Stream the rows that change."""
    return stream_view(request, _queue_view(queue, after), version)


def _queue_view(queue: Queue, after: str | None) -> LiveView[QueuePage]:
    def load(session: Session) -> QueuePage:
        alive = AliveWorkers(get_settings())
        found = next(each for each in list_queues(session, alive) if each.queue is queue)
        runs, following = list_waiting_runs(session, alive, queue, PageQuery(after=after))
        return QueuePage(found, runs, following)

    def render(state: QueuePage, visitor: Visitor) -> Parts:
        language = visitor.language
        parts = {"queue-use": render_macro(language, PARTS, "queue_use", state.queue)}
        rows = {f"row-{run.id}": render_macro(language, PARTS, "waiting_row", run) for run in state.runs}
        empty = render_macro(language, PARTS, "empty_queue_row", after)
        return Parts(parts=parts, rows=rows, table="waiting", empty=empty)

    return LiveView(load, render)
