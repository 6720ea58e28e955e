"""Deployments: asked for, listed and stopped; the worker that takes one keeps its engine alive."""

from collections.abc import Sequence

from sqlmodel import Session, col, select

from app.aliases import targets as aliases
from app.deployments import lifecycle
from app.deployments.create import build_deployment, insert_deployment
from app.deployments.schemas import DeploymentCreate, DeploymentView
from app.http.errors import Conflict, NotFound
from app.http.paging import PageQuery, paginate_newest_first
from app.models import references
from app.settings import get_settings
from app.tables import Deployment, DeploymentStatus
from app.workers import service as workers
from trainers.runtime.error_codes import ErrorCode


class DeploymentNotFound(NotFound):
    """No deployment has this id."""

    code = ErrorCode.deployment_not_found


class AliasLeadsHere(Conflict):
    """An alias sends requests to the deployment that is to stop."""

    code = ErrorCode.alias_leads_here


def create(session: Session, body: DeploymentCreate) -> DeploymentView:
    """Ask for a deployment; raises Invalid when the model cannot be used, NameIsAlias for an alias's name."""
    reference = references.resolve_model(session, body.model, "model")
    queue = body.queue or get_settings().default_queue
    return show(
        session, insert_deployment(session, build_deployment(session, body.name, reference, body, queue))
    )


def page(
    session: Session, paging: PageQuery, status: DeploymentStatus | None, name: str | None
) -> tuple[Sequence[DeploymentView], str | None]:
    """Deployments from new to old."""
    statement = select(Deployment)
    if status is not None:
        statement = statement.where(col(Deployment.status) == status)
    if name is not None:
        statement = statement.where(col(Deployment.name) == name)
    rows, after = paginate_newest_first(session, statement, col(Deployment.id), paging)
    return [show(session, row) for row in rows], after


def get(session: Session, deployment_id: str) -> DeploymentView:
    """One deployment; raises DeploymentNotFound."""
    return show(session, _find(session, deployment_id))


def stop(session: Session, deployment_id: str, force: bool) -> DeploymentView:
    """Ask its worker to stop it; stopping twice is the same as once.

    Raises AliasLeadsHere unless forced: whoever asks the alias would get the other targets, or 503.
    """
    deployment = _find(session, deployment_id)
    leading = aliases.list_alias_names(session, deployment.name) if deployment.replaces is None else []
    if leading and not force and deployment.status in lifecycle.LIVE:
        raise AliasLeadsHere(
            f"The alias {leading[0]!r} leads to {deployment.name!r} ({deployment.id}), so it is not stopped.",
            hint=f"Move the alias first: PUT /api/v1/aliases/{leading[0]}; or stop it with ?force=true.",
        )
    lifecycle.stop(session, deployment_id)
    session.expire_all()
    return show(session, _find(session, deployment_id))


def wake(session: Session, deployment_id: str) -> DeploymentView:
    """Ask for an engine if it sleeps; in any other status nothing changes."""
    _find(session, deployment_id)
    lifecycle.wake(session, deployment_id)
    session.expire_all()
    return show(session, _find(session, deployment_id))


def show(session: Session, deployment: Deployment) -> DeploymentView:
    """The deployment, and what it waits for if it does."""
    shown = DeploymentView.model_validate(deployment)
    if deployment.status is DeploymentStatus.queued:
        shown.waiting_for = workers.explain_missing_deployment_worker(session, deployment.queue) or (
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
