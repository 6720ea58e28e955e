"""The list of batches, and the page of one: its requests, faults, files, and the run that carries it out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Path, Query, Request, Response
from sqlmodel import Session

from app.batches import service
from app.files.service import find_files
from app.http.paging import DEFAULT_LIMIT, CursorQuery
from app.runs.schemas import RunView
from app.runs.service import view_run
from app.settings import get_settings
from app.storage.database import ReadSession, read_session
from app.tables import Batch, BatchStatus, File
from app.web.live import LiveView, Parts, Version, show_changes, stream_view
from app.web.rendering import render_macro, render_page
from app.web.url_state import ListFilters
from app.web.views.openai_api.examples import BATCH, fill_example
from app.web.visitor import CurrentVisitor, Visitor, view_router

PARTS = "batches/parts.jinja"

router = view_router()

BatchId = Annotated[str, Path(pattern=r"^batch_[0-9A-Za-z]{1,60}$")]


@dataclass(frozen=True)
class BatchFilters(ListFilters):
    """The position in the list, which is in the URL."""

    after: str | None


@dataclass(frozen=True)
class BatchList:
    """The batches of a page of the list, with their input files by id."""

    batches: Sequence[Batch]
    files: Mapping[str, File]
    next: str | None


@dataclass(frozen=True)
class BatchDetails:
    """A batch with its files by id, the run that carries it out, and the statuses that can be cancelled."""

    batch: Batch
    files: Mapping[str, File]
    run: RunView
    cancellable: tuple[BatchStatus, ...] = service.CANCELLABLE


def batch_filters(
    after: Annotated[str | None, Query(pattern=r"^batch_[0-9A-Za-z]{1,60}$")] = None,
) -> BatchFilters:
    """Return the position of a request."""
    return BatchFilters(after)


Filters = Annotated[BatchFilters, Depends(batch_filters)]


@router.get("/batches")
def list_batches(
    request: Request, session: ReadSession, visitor: CurrentVisitor, filters: Filters
) -> Response:
    """Show the batches, newest first."""
    view = _list_view(request, filters)
    state = view.load(session)
    parts = view.render(state, visitor)
    return render_page(request, "batches/list.jinja", state=state, parts=parts, filters=filters)


@router.get("/batches/stream")
def stream_batches(request: Request, filters: Filters, version: Version = "") -> Response:
    """Stream the rows that change."""
    return stream_view(request, _list_view(request, filters), version)


@router.get("/batches/{batch_id}")
def show_batch(
    request: Request, session: ReadSession, visitor: CurrentVisitor, batch_id: BatchId
) -> Response:
    """Show a batch."""
    view = _page_view(batch_id)
    state = view.load(session)
    return render_page(request, "batches/page.jinja", state=state, parts=view.render(state, visitor))


@router.get("/batches/{batch_id}/stream")
def stream_batch(request: Request, batch_id: BatchId, version: Version = "") -> Response:
    """Stream the parts of the batch's page that change."""
    return stream_view(request, _page_view(batch_id), version)


@router.post("/batches/{batch_id}/cancel")
def cancel_batch(request: Request, visitor: CurrentVisitor, batch_id: BatchId) -> Response:
    """Cancel a batch; what has a response is kept in its output file."""
    service.cancel_batch(batch_id)
    with read_session() as session:
        return show_changes(request, session, visitor, _page_view(batch_id), f"/batches/{batch_id}")


def _list_view(request: Request, filters: BatchFilters) -> LiveView[BatchList]:
    def load(session: Session) -> BatchList:
        batches, has_more = service.list_batches(session, CursorQuery(DEFAULT_LIMIT, filters.after))
        files = find_files(session, [batch.input_file_id for batch in batches])
        return BatchList(batches, files, batches[-1].id if has_more else None)

    def render(state: BatchList, visitor: Visitor) -> Parts:
        language = visitor.language
        rows = {
            f"row-{batch.id}": render_macro(
                language, PARTS, "row", batch, state.files.get(batch.input_file_id)
            )
            for batch in state.batches
        }
        example = fill_example(BATCH, request)
        empty = render_macro(language, PARTS, "empty_row", filters, example)
        return Parts(rows=rows, table="batches", empty=empty)

    return LiveView(load, render)


def _page_view(batch_id: str) -> LiveView[BatchDetails]:
    def load(session: Session) -> BatchDetails:
        batch = service.get_batch(session, batch_id)
        assert batch.run_id is not None, "a committed batch has a run"
        files = find_files(session, [batch.input_file_id, batch.output_file_id, batch.error_file_id])
        return BatchDetails(batch, files, view_run(session, get_settings(), batch.run_id))

    def render(state: BatchDetails, visitor: Visitor) -> Parts:
        names = {"batch-head": "head", "batch-facts": "facts", "batch-files": "files"}
        parts = {
            id: render_macro(visitor.language, PARTS, name, state, visitor) for id, name in names.items()
        }
        return Parts(parts=parts)

    return LiveView(load, render)
