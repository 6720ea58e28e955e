"""What gateways ask, over HTTP; needs the scope `inference`."""

from fastapi import APIRouter, Depends

from app.http.auth import require_inference
from app.http.paging import Page
from app.routing_table import service
from app.routing_table.schemas import RouteUseCreate, RouteView
from app.storage.database import ReadSession, WriteSession

router = APIRouter(prefix="/routes", tags=["routes"], dependencies=[Depends(require_inference)])


@router.get("")
def list_routes(session: ReadSession) -> Page[RouteView]:
    """Every name that clients may ask for, with the engines that answer for it."""
    return Page(items=service.list_routes(session), next=None)


@router.post("/use", status_code=204)
def note_use(session: WriteSession, body: RouteUseCreate) -> None:
    """Tell which deployments were asked lately, so that they stay awake."""
    service.record_use(session, body.deployment_ids)
