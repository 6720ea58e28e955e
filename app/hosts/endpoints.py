"""Hosts over HTTP. They cost money, so launching and terminating one requires the scope `admin`."""

from typing import Annotated

from fastapi import APIRouter, Body, Depends, Path, Query

from app.hosts import service, settlement
from app.hosts.schemas import (
    CREATE_EXAMPLES,
    SETTLE_EXAMPLES,
    TAKE_OVER_EXAMPLES,
    HostCreate,
    HostSettle,
    HostTakeOver,
    HostView,
    OffersView,
)
from app.http.auth import CallerDependency, require_admin, require_by_method
from app.http.edges.query import check_query
from app.http.paging import Page, Paging
from app.idempotency.creation import Creation
from app.settings import get_settings
from app.storage.database import ReadSession, WriteSession, read_session
from app.tables import HostStatus

router = APIRouter(prefix="/hosts", tags=["hosts"])
# The query is checked after the key.
READ = [Depends(require_by_method), Depends(check_query)]
ADMIN = [Depends(require_admin), Depends(check_query)]

HostIdPath = Annotated[str, Path(max_length=100, description="Id of the host, `host_…`.")]


@router.post("", status_code=201, dependencies=ADMIN)
def create_host(
    caller: CallerDependency,
    body: Annotated[HostCreate, Body(openapi_examples=CREATE_EXAMPLES)],
    creation: Creation,
) -> HostView:
    """Launch a host in a cloud, whose worker joins this service. It costs money until it is terminated.

    It ends when it is deleted, when it is idle, before it costs more than `max_usd`, and when it does not
    become ready.
    """
    host_id = creation.once(lambda record: service.create_host(get_settings(), body, caller.key_id, record))
    with read_session() as session:
        return service.view_hosts(session, get_settings(), [service.get_host(session, host_id)])[0]


@router.get("", dependencies=READ)
def list_hosts(
    session: ReadSession,
    paging: Paging,
    status: Annotated[HostStatus | None, Query(description="Return only hosts with this status.")] = None,
) -> Page[HostView]:
    """List hosts, newest first, with what they have cost."""
    hosts, after = service.list_hosts(session, paging, status)
    return Page(items=service.view_hosts(session, get_settings(), hosts), next=after)


@router.get("/offers", dependencies=READ)
def get_offers(session: ReadSession) -> OffersView:
    """Return what the clouds offer, with prices, as a worker with the keys of the cloud has read it."""
    return service.view_offers(session, get_settings())


@router.post("/take-over", dependencies=ADMIN)
def take_over_machines(
    session: WriteSession, body: Annotated[HostTakeOver, Body(openapi_examples=TAKE_OVER_EXAMPLES)]
) -> OffersView:
    """State that no other copy of this installation uses its machines, after a restoration from a backup.

    Until then nothing is launched or terminated. Afterwards machines that no row wants are terminated: read
    `unclaimed` in `GET /api/v1/hosts/offers` before.
    """
    settlement.take_over(session, body.cloud)
    session.flush()
    return service.view_offers(session, get_settings())


@router.get("/{host_id}", dependencies=READ)
def get_host(session: ReadSession, host_id: HostIdPath) -> HostView:
    """Return a host, with how far it is and what it has cost."""
    return service.view_hosts(session, get_settings(), [service.get_host(session, host_id)])[0]


@router.delete("/{host_id}", status_code=202, dependencies=ADMIN)
def delete_host(session: WriteSession, host_id: HostIdPath) -> HostView:
    """Terminate a host: its worker saves its runs first, which continue elsewhere. Repeating it is safe."""
    host = service.terminate_host(session, host_id)
    return service.view_hosts(session, get_settings(), [host])[0]


@router.post("/{host_id}/settle", dependencies=ADMIN)
def settle_host(
    session: WriteSession,
    host_id: HostIdPath,
    body: Annotated[HostSettle, Body(openapi_examples=SETTLE_EXAMPLES)],
) -> HostView:
    """Decide about a host out of reach: the keys of the cloud are of another account than its machine."""
    host = settlement.settle_host(session, host_id, body.settlement)
    return service.view_hosts(session, get_settings(), [host])[0]
