"""The API keys, for admins: a list, the form that creates one and shows it once, and revocation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Path, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from sqlmodel import Session

from app.http.auth import has_active_key
from app.http.paging import PageQuery
from app.keys import service
from app.keys.schemas import KeyCreate, KeyView
from app.storage.database import ReadSession, WriteSession
from app.tables import Scope
from app.web.errors import parse_form
from app.web.live import LiveView, Parts, Version, stream_view
from app.web.rendering import is_htmx, render_macro, render_page
from app.web.visitor import CurrentVisitor, Visitor, view_router

PARTS = "keys/parts.jinja"

router = view_router(read=Scope.admin, write=Scope.admin)

KeyId = Annotated[str, Path(pattern=r"^key_[0-9a-z]{1,40}$")]
After = Annotated[str | None, Query(pattern=r"^key_[0-9a-z]{26}$")]


@dataclass(frozen=True)
class KeyList:
    """The keys of a page of the list."""

    keys: Sequence[KeyView]
    next: str | None
    is_locked: bool


async def key_form(request: Request) -> KeyCreate:
    """Return the key that the form describes; an empty limit is none."""
    form = await request.form()
    limits = ("requests_per_minute", "concurrent_requests", "tokens_per_day")
    models = [line.strip() for line in str(form.get("models", "")).splitlines() if line.strip()]
    values: dict[str, Any] = {
        "name": form.get("name", ""),
        "scopes": form.getlist("scope"),
        "models": models or None,
        "lock_service": "lock_service" in form,
        **{name: _parse_limit(str(form.get(name, "")).strip()) for name in limits},
    }
    return parse_form(KeyCreate, **values)


@router.get("/keys")
def list_keys(
    request: Request, session: ReadSession, visitor: CurrentVisitor, after: After = None
) -> Response:
    """Show the keys, newest first, and the form that creates one."""
    view = _list_view(after)
    state = view.load(session)
    parts = view.render(state, visitor)
    return render_page(
        request, "keys/list.jinja", state=state, parts=parts, after=after, scopes=list(Scope), created=None
    )


@router.get("/keys/stream")
def stream_keys(request: Request, after: After = None, version: Version = "") -> Response:
    """Stream the rows that change."""
    return stream_view(request, _list_view(after), version)


@router.post("/keys")
def create_key(
    request: Request,
    session: WriteSession,
    visitor: CurrentVisitor,
    body: Annotated[KeyCreate, Depends(key_form)],
) -> Response:
    """Create a key. Only this response contains its secret: no redirect, no URL and no log does."""
    key, secret, _ = service.create_key_over_http(session, body)
    view = _list_view(None)
    state = view.load(session)
    parts = view.render(state, visitor)
    created = {"name": key.name, "secret": secret}
    if is_htmx(request):
        shown = render_macro(visitor.language, PARTS, "created_key", created)
        return HTMLResponse(
            Parts(parts={"created-key": shown}).render_changes(None) + parts.render_changes(None)
        )
    return render_page(
        request,
        "keys/list.jinja",
        state=state,
        parts=parts,
        after=None,
        scopes=list(Scope),
        created=created,
    )


@router.post("/keys/{key_id}/revoke")
def revoke_key(request: Request, session: WriteSession, visitor: CurrentVisitor, key_id: KeyId) -> Response:
    """Revoke a key; revoking it again changes nothing."""
    service.revoke_key(session, key_id)
    if not is_htmx(request):
        return RedirectResponse("/keys", 303)
    key = service.view_keys(session, [service.get_key(session, key_id)])[0]
    row = render_macro(visitor.language, PARTS, "row", key, visitor)
    return HTMLResponse(Parts(parts={f"row-{key_id}": row}).render_changes(None))


def _parse_limit(text: str) -> int | str | None:
    # The check of the body names the field of a text that is not a number.
    return int(text) if text.isdecimal() and len(text) < 20 else text or None


def _list_view(after: str | None) -> LiveView[KeyList]:
    def load(session: Session) -> KeyList:
        keys, following = service.list_keys(session, PageQuery(after=after))
        return KeyList(service.view_keys(session, keys), following, has_active_key(session))

    def render(state: KeyList, visitor: Visitor) -> Parts:
        rows = {
            f"row-{key.id}": render_macro(visitor.language, PARTS, "row", key, visitor) for key in state.keys
        }
        empty = render_macro(visitor.language, PARTS, "empty_row", after)
        return Parts(rows=rows, table="keys", empty=empty)

    return LiveView(load, render)
