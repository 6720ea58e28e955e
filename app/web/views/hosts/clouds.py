"""The machines that the service has launched in clouds, what they cost, and what the clouds offer."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

from fastapi import Depends, Form, Path, Query, Request, Response
from sqlmodel import Session

from app.hosts import service
from app.hosts.schemas import CloudOffersView, HostCreate, HostView
from app.http.paging import PageQuery
from app.idempotency.creation import repeatable_form
from app.settings import get_settings
from app.storage.database import ReadSession, WriteSession
from app.tables import HostStatus, Scope
from app.web.errors import parse_form
from app.web.live import LiveView, Parts, Version, stream_view
from app.web.rendering import go_to, render_macro, render_page
from app.web.url_state import ListFilters
from app.web.visitor import CurrentVisitor, Visitor, view_router

PARTS = "hosts/parts.jinja"

# Machines cost money.
router = view_router(write=Scope.admin)

HostId = Annotated[str, Path(pattern=r"^host_[0-9a-z]{1,40}$")]
ShortText = Annotated[str, Form(max_length=200)]


@dataclass(frozen=True)
class CloudHostFilters(ListFilters):
    """The filters of the list of machines, all of which are in the URL."""

    status: str
    after: str | None


@dataclass(frozen=True)
class CloudHostList:
    """A page of the machines, and the clouds."""

    hosts: Sequence[HostView]
    clouds: Sequence[CloudOffersView]
    next: str | None


def cloud_host_filters(
    status: Literal[""] | HostStatus = "",
    after: Annotated[str | None, Query(pattern=r"^host_[0-9a-z]{26}$")] = None,
) -> CloudHostFilters:
    """Return the filters of a request."""
    return CloudHostFilters(status, after)


Filters = Annotated[CloudHostFilters, Depends(cloud_host_filters)]


@router.get("/hosts/clouds")
def list_cloud_hosts(
    request: Request, session: ReadSession, visitor: CurrentVisitor, filters: Filters
) -> Response:
    """Show all machines, newest first, and the form that launches one."""
    view = _list_view(filters)
    state = view.load(session)
    return render_page(
        request,
        "hosts/clouds.jinja",
        state=state,
        parts=view.render(state, visitor),
        filters=filters,
        statuses=list(HostStatus),
        idle_seconds=get_settings().host_idle_seconds,
        key=secrets.token_hex(16),
    )


@router.get("/hosts/clouds/stream")
def stream_cloud_hosts(request: Request, filters: Filters, version: Version = "") -> Response:
    """Stream the parts that change."""
    return stream_view(request, _list_view(filters), version)


@router.post("/hosts/clouds/launch")
def launch_host(
    request: Request,
    visitor: CurrentVisitor,
    offer: ShortText,
    max_usd: Annotated[float, Form()],
    key: Annotated[str, Form(max_length=64)] = "",
) -> Response:
    """Launch a machine; `offer` is the cloud, the type, the region, and `spot` or nothing.

    A form that is sent twice with the same content launches one.
    """
    assert visitor.caller is not None
    cloud, type, region, spot = (offer.split(" ") + [""] * 3)[:4]
    body = parse_form(
        HostCreate, cloud=cloud, type=type or None, region=region or None, spot=bool(spot), max_usd=max_usd
    )
    creation = repeatable_form(request, visitor.caller.key_id, key, body)
    creation.once(partial(service.create_host, get_settings(), body, visitor.caller.key_id))
    return go_to(request, "/hosts/clouds")


@router.post("/hosts/clouds/{host_id}/terminate")
def terminate_host(request: Request, session: WriteSession, host_id: HostId) -> Response:
    """Terminate a machine, whose worker saves its runs first."""
    service.terminate_host(session, host_id)
    return go_to(request, "/hosts/clouds")


def _list_view(filters: CloudHostFilters) -> LiveView[CloudHostList]:
    def load(session: Session) -> CloudHostList:
        settings, page = get_settings(), PageQuery(after=filters.after)
        status = HostStatus(filters.status) if filters.status else None
        rows, after = service.list_hosts(session, page, status)
        offers = service.view_offers(session, settings)
        return CloudHostList(service.view_hosts(session, settings, rows), offers.clouds, after)

    def render(state: CloudHostList, visitor: Visitor) -> Parts:
        language = visitor.language
        parts = {"clouds": render_macro(language, PARTS, "cloud_states", state.clouds)}
        rows = {
            f"row-{host.id}": render_macro(language, PARTS, "cloud_row", host, visitor)
            for host in state.hosts
        }
        empty = render_macro(language, PARTS, "empty_cloud_row", filters)
        return Parts(parts=parts, rows=rows, table="machines", empty=empty)

    return LiveView(load, render)
