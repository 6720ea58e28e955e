"""Deployments over HTTP."""

from fastapi import APIRouter, Depends

from app.deployments import service
from app.deployments.schemas import DeploymentCreate, DeploymentView
from app.http.auth import require_inference
from app.http.paging import Page, Paging
from app.storage.database import ReadSession, WriteSession
from app.tables import DeploymentStatus

router = APIRouter(prefix="/deployments", tags=["deployments"])
gateways = APIRouter(prefix="/deployments", tags=["deployments"], dependencies=[Depends(require_inference)])


@router.post("", status_code=201)
def create_deployment(session: WriteSession, body: DeploymentCreate) -> DeploymentView:
    """Keep a model ready under a name; a deployment of that name serves on until the new one is ready."""
    return service.create(session, body)


@router.get("")
def list_deployments(
    session: ReadSession, paging: Paging, status: DeploymentStatus | None = None, name: str | None = None
) -> Page[DeploymentView]:
    """Deployments from new to old."""
    items, after = service.page(session, paging, status, name)
    return Page(items=list(items), next=after)


@router.get("/{deployment_id}")
def get_deployment(session: ReadSession, deployment_id: str) -> DeploymentView:
    """One deployment."""
    return service.get(session, deployment_id)


@router.post("/{deployment_id}/stop")
def stop_deployment(session: WriteSession, deployment_id: str, force: bool = False) -> DeploymentView:
    """Stop it, once, however often it is asked; one that an alias leads to is stopped by `force` only."""
    return service.stop(session, deployment_id, force)


@gateways.post("/{deployment_id}/wake")
def wake_deployment(session: WriteSession, deployment_id: str) -> DeploymentView:
    """Ask for an engine for a sleeping deployment, as a request to it does; needs the scope `inference`."""
    return service.wake(session, deployment_id)
