"""Deployments: asked for, listed and stopped; the worker that takes one keeps its engine alive."""

from collections.abc import Sequence

from sqlmodel import Session, col, select

from app.deployments import lifecycle
from app.deployments.schemas import DeploymentCreate, DeploymentOut
from app.errors import NotFound
from app.models import references
from app.paging import PageQuery, newest_first
from app.settings import get_settings
from app.tables import Deployment, DeploymentStatus
from app.workers import service as workers


class DeploymentNotFound(NotFound):
    """No deployment has this id."""

    code = "deployment_not_found"


def create(session: Session, body: DeploymentCreate) -> DeploymentOut:
    """Ask for a deployment; raises Invalid when the model reference cannot be used."""
    reference = references.resolve(session, body.model, "model")
    model_id = reference if reference.startswith("model_") else None
    deployment = Deployment(
        name=body.name,
        base=reference,
        model_id=model_id,
        engine=body.engine,
        options=body.options.model_dump(exclude_defaults=True),
        queue=body.queue or get_settings().default_queue,
    )
    return show(session, lifecycle.begin(session, deployment))


def page(
    session: Session, paging: PageQuery, status: DeploymentStatus | None, name: str | None
) -> tuple[Sequence[DeploymentOut], str | None]:
    """Deployments from new to old."""
    statement = select(Deployment)
    if status is not None:
        statement = statement.where(col(Deployment.status) == status)
    if name is not None:
        statement = statement.where(col(Deployment.name) == name)
    rows, after = newest_first(session, statement, col(Deployment.id), paging)
    return [show(session, row) for row in rows], after


def get(session: Session, deployment_id: str) -> DeploymentOut:
    """One deployment; raises DeploymentNotFound."""
    return show(session, _find(session, deployment_id))


def stop(session: Session, deployment_id: str) -> DeploymentOut:
    """Ask its worker to stop it; stopping twice is the same as once."""
    _find(session, deployment_id)
    lifecycle.stop(session, deployment_id)
    session.expire_all()
    return show(session, _find(session, deployment_id))


def show(session: Session, deployment: Deployment) -> DeploymentOut:
    """The deployment, and what it waits for if it does."""
    shown = DeploymentOut.model_validate(deployment)
    if deployment.status is DeploymentStatus.queued:
        shown.waiting_for = workers.why_none_serves(session, deployment.queue) or (
            f"A worker of queue {deployment.queue} has yet to take it; each of its devices may be in use."
        )
    return shown


def _find(session: Session, deployment_id: str) -> Deployment:
    deployment = session.get(Deployment, deployment_id)
    if deployment is None:
        raise DeploymentNotFound(
            f"There is no deployment {deployment_id}.", hint="List them with GET /api/v1/deployments."
        )
    return deployment
