"""Storage: what takes the space, what can be freed, and what collections keep."""

from fastapi import Request, Response
from sqlmodel import Session

from app.settings import get_settings
from app.storage import usage
from app.storage.database import ReadSession
from app.storage.schemas import StorageView
from app.web.live import LiveView, Parts, Version, stream_view
from app.web.rendering import render_macro, render_page
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


def _load(session: Session) -> StorageView:
    return usage.view_storage(session, get_settings())


def _render(state: StorageView, visitor: Visitor) -> Parts:
    names = {"disks": "disks", "kinds": "kinds", "collection": "collection", "largest": "largest"}
    language = visitor.language
    return Parts(parts={id: render_macro(language, PARTS, name, state) for id, name in names.items()})


VIEW = LiveView(_load, _render)
