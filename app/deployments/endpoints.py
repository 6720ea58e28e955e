"""Deployments over HTTP."""

from fastapi import APIRouter

from app.db import Reading, Writing
from app.deployments import service
from app.deployments.schemas import DeploymentCreate, DeploymentOut
from app.paging import Page, Paging
from app.tables import DeploymentStatus

router = APIRouter(prefix="/deployments", tags=["deployments"])


@router.post("", status_code=201)
def create_deployment(session: Writing, body: DeploymentCreate) -> DeploymentOut:
    """Keep a model ready under a name; a live deployment of that name is stopped."""
    return service.create(session, body)


@router.get("")
def list_deployments(
    session: Reading, paging: Paging, status: DeploymentStatus | None = None, name: str | None = None
) -> Page[DeploymentOut]:
    """Deployments from new to old."""
    items, after = service.page(session, paging, status, name)
    return Page(items=list(items), next=after)


@router.get("/{deployment_id}")
def get_deployment(session: Reading, deployment_id: str) -> DeploymentOut:
    """One deployment."""
    return service.get(session, deployment_id)


@router.post("/{deployment_id}/stop")
def stop_deployment(session: Writing, deployment_id: str) -> DeploymentOut:
    """Stop the engine, once, however often it is asked."""
    return service.stop(session, deployment_id)
