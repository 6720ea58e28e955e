"""Storage: what takes the space, what can be freed, and what collections keep."""

from typing import Annotated

from fastapi import BackgroundTasks, Form, Request, Response
from sqlmodel import Session

from app.retention.request import start_collection
from app.settings import get_settings
from app.storage import usage
from app.storage.database import ReadSession
from app.storage.schemas import StorageView
from app.web.live import LiveView, Parts, Version, stream_view
from app.web.rendering import go_to, render_macro, render_page
from app.web.visitor import CurrentVisitor, Visitor, view_router

PARTS = "storage/parts.jinja"

router = view_router()


@router.get("/storage")
def show_storage(request: Request, session: ReadSession, visitor: CurrentVisitor) -> Response:
    """Show the use of space, the largest objects, and the last collection."""
    state = VIEW.load(session)
    return render_page(request, "storage/page.jinja", state=state, parts=VIEW.render(state, visitor))


@router.get("/storage/stream")
def stream_storage(request: Request, version: Version = "") -> Response:
    """Stream the parts that change."""
    return stream_view(request, VIEW, version)


@router.post("/storage/collections")
def collect_garbage(
    request: Request, background: BackgroundTasks, dry_run: Annotated[bool, Form()]
) -> Response:
    """Collect garbage in the background, or find out what would be removed, and return to the page."""
    is_stopping = request.app.state.stopping.is_set
    _, run = start_collection(get_settings(), dry_run=dry_run, is_stopping=is_stopping)
    background.add_task(run)
    return go_to(request, "/storage")


def _load(session: Session) -> StorageView:
    return usage.view_storage(session, get_settings())


def _render(state: StorageView, visitor: Visitor) -> Parts:
    names = ("disks", "kinds", "collection", "largest")
    return Parts(parts={name: render_macro(visitor.language, PARTS, name, state, visitor) for name in names})


VIEW = LiveView(_load, _render)
