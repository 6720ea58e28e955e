"""The routing table over HTTP; requires the scope `inference`, which gateways have."""

from fastapi import APIRouter, Depends

from app.http.auth import require_inference
from app.http.edges.query import check_query
from app.http.paging import Page
from app.routing_table import service
from app.routing_table.schemas import RouteUseCreate, RouteView
from app.storage.database import ReadSession, WriteSession

router = APIRouter(
    prefix="/routes", tags=["routes"], dependencies=[Depends(require_inference), Depends(check_query)]
)


@router.get("")
def list_routes(session: ReadSession) -> Page[RouteView]:
    """List all model names with the engines that serve them, on one page."""
    return Page(items=service.list_routes(session), next=None)


@router.post("/use", status_code=204)
def record_use(session: WriteSession, body: RouteUseCreate) -> None:
    """Record the deployments that served requests recently, which keeps them awake."""
    service.record_use(session, body.deployment_ids)
