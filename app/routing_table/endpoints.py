"""The routing table over HTTP; requires the scope `inference`, which gateways have.

The traffic of aliases requires `write`: a report can move an alias, as PUT /aliases/{name} does.
"""

from fastapi import APIRouter, Depends

from app.http.auth import require_by_method, require_inference
from app.http.edges.query import check_query
from app.http.paging import Page
from app.routing_table import service, traffic
from app.routing_table.schemas import RouteUseCreate, RouteView, TrafficCreate
from app.storage.database import ReadSession, WriteSession

router = APIRouter(
    prefix="/routes", tags=["routes"], dependencies=[Depends(require_inference), Depends(check_query)]
)
traffic_router = APIRouter(
    prefix="/traffic", tags=["routes"], dependencies=[Depends(require_by_method), Depends(check_query)]
)


@router.get("")
def list_routes(session: ReadSession) -> Page[RouteView]:
    """List all model names with the engines that serve them, on one page."""
    return Page(items=service.list_routes(session), next=None)


@router.post("/use", status_code=204)
def record_use(session: WriteSession, body: RouteUseCreate) -> None:
    """Record the deployments that served requests recently, which keeps them awake."""
    service.record_use(session, body.deployment_ids)


@traffic_router.post("", status_code=204)
def record_traffic(session: WriteSession, body: TrafficCreate) -> None:
    """Record what a gateway process has counted of the requests to aliases that a promotion moves."""
    traffic.record_traffic(session, body.reporter, [item.model_dump() for item in body.items])
