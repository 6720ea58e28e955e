"""Deployments over HTTP."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Body, Depends, Path, Query

from app.deployments import service
from app.deployments.schemas import CREATE_EXAMPLES, DeploymentCreate, DeploymentView
from app.http.auth import CallerDependency, require_inference
from app.http.edges.query import check_query
from app.http.paging import Page, Paging
from app.idempotency.creation import Creation
from app.storage.database import ReadSession, WriteSession
from app.tables import DeploymentStatus

router = APIRouter(prefix="/deployments", tags=["deployments"])
gateways = APIRouter(
    prefix="/deployments",
    tags=["deployments"],
    dependencies=[Depends(require_inference), Depends(check_query)],
)

DeploymentId = Annotated[str, Path(description="Id of the deployment, `deployment_…`.")]


@router.post("", status_code=201)
def create_deployment(
    caller: CallerDependency,
    body: Annotated[DeploymentCreate, Body(openapi_examples=CREATE_EXAMPLES)],
    creation: Creation,
) -> DeploymentView:
    """Keep a model ready under a name; a deployment with that name serves until the new one is ready."""
    deployment_id = creation.once(partial(service.submit_deployment, body, caller.key_id))
    return service.read_deployment(deployment_id)


@router.get("")
def list_deployments(
    session: ReadSession,
    paging: Paging,
    status: Annotated[
        DeploymentStatus | None, Query(description="Return only deployments in this state.")
    ] = None,
    name: Annotated[str | None, Query(description="Return only deployments with exactly this name.")] = None,
) -> Page[DeploymentView]:
    """List deployments, newest first."""
    deployments, after = service.list_deployments(session, paging, status, name)
    return Page(items=[service.view_deployment(session, row) for row in deployments], next=after)


@router.get("/{deployment_id}")
def get_deployment(session: ReadSession, deployment_id: DeploymentId) -> DeploymentView:
    """Return a deployment."""
    return service.view_deployment(session, service.get_deployment(session, deployment_id))


@router.post("/{deployment_id}/stop")
def stop_deployment(
    session: WriteSession,
    caller: CallerDependency,
    deployment_id: DeploymentId,
    force: Annotated[
        bool, Query(description="Stop it although an alias routes requests to its name.")
    ] = False,
) -> DeploymentView:
    """Stop a deployment; stopping it again changes nothing. That of a fine-tuned model falls asleep."""
    stopped = service.stop_deployment(session, deployment_id, force, caller.key_id)
    return service.view_deployment(session, stopped)


@router.delete("/{deployment_id}", status_code=204)
def delete_deployment(session: WriteSession, caller: CallerDependency, deployment_id: DeploymentId) -> None:
    """Delete the record of a deployment that has stopped or failed. Deleting it again returns 404."""
    service.delete_deployment(session, deployment_id, caller.key_id)


@gateways.post("/{deployment_id}/wake")
def wake_deployment(
    session: WriteSession, caller: CallerDependency, deployment_id: DeploymentId
) -> DeploymentView:
    """Start the engine of a sleeping deployment, as a request to it does; needs the scope `inference`."""
    return service.view_deployment(session, service.wake_deployment(session, deployment_id, caller.key_id))
