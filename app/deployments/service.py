"""Deployments: created, listed and stopped here; a worker runs their engines."""

from collections.abc import Sequence

from sqlmodel import Session, col, select

from app.aliases.targets import list_alias_names
from app.deployments import lifecycle
from app.deployments.create import build_deployment, insert_deployment
from app.deployments.schemas import DeploymentCreate, DeploymentView, deployment_view
from app.deployments.waiting import explain_unclaimed
from app.http.errors import Conflict, NotFound, field_error
from app.http.paging import PageQuery, paginate_newest_first
from app.idempotency.creation import Record
from app.keys.limits import check_names
from app.models import references
from app.models.deployed_model import check_deployed_model
from app.models.templates import check_template
from app.settings import get_settings
from app.storage.database import read_session, transaction
from app.tables import Deployment, DeploymentStatus, current_status
from app.workers import service as workers
from app.workers.queue_choice import QueueChooser
from trainers.configs import StageKind
from trainers.configs.engines import list_unread_options
from trainers.runtime.error_codes import ErrorCode


class DeploymentNotFound(NotFound):
    """No deployment has this id."""

    code = ErrorCode.deployment_not_found


class DeploymentHasAlias(Conflict):
    """An alias routes requests to the deployment that the request would stop."""

    code = ErrorCode.deployment_has_alias


def create_deployment(session: Session, body: DeploymentCreate, key_id: str) -> Deployment:
    """Insert a queued deployment, which takes its name from the one that has it.

    Raises ServedModelForbidden if the key may not use the name, NameIsAlias, UnprocessableContent for an
    unusable model, TemplateUnusable and DeployedModelRefused.
    """
    check_names(session, key_id, [body.name])
    check_template(body.model, "model")
    _check_options(body)
    reference = str(references.resolve_model(session, body.model, "model"))
    check_deployed_model(session, reference, body, "model")
    chooser = QueueChooser(session, get_settings(), workers.AliveWorkers(get_settings()))
    queue = body.queue or chooser.choose(StageKind.deploy, body.engine.suitable_queues).queue
    return insert_deployment(session, build_deployment(session, body.name, reference, body, queue))


def submit_deployment(body: DeploymentCreate, key_id: str, record: Record) -> str:
    """Commit a deployment together with what `record` stores of its id; return the id."""
    with transaction() as session:
        deployment = create_deployment(session, body, key_id)
        record(session, deployment.id)
        return deployment.id


def read_deployment(deployment_id: str) -> DeploymentView:
    """Return a deployment as it is stored; raises DeploymentNotFound."""
    with read_session() as session:
        return view_deployment(session, get_deployment(session, deployment_id))


def _check_options(body: DeploymentCreate) -> None:
    """Raise UnprocessableContent for an option that was set and that the engine does not read."""
    options = body.options.model_dump(exclude_defaults=True)
    for option, needed in list_unread_options(body.engine):
        if option in options:
            message = f"options.{option} has no effect: {needed}, or omit options.{option}."
            raise field_error(f"options.{option}", message)


def list_deployments(
    session: Session, paging: PageQuery, status: DeploymentStatus | None, name: str | None
) -> tuple[Sequence[Deployment], str | None]:
    """Return a page of deployments, newest first, optionally with one status or name."""
    statement = select(Deployment)
    if status is not None:
        statement = statement.where(current_status() == status)
    if name is not None:
        statement = statement.where(col(Deployment.name) == name)
    return paginate_newest_first(session, statement, col(Deployment.id), paging)


def get_deployment(session: Session, deployment_id: str) -> Deployment:
    """Return the deployment as the database has it now; raises DeploymentNotFound."""
    deployment = session.get(Deployment, deployment_id, populate_existing=True)
    if deployment is None:
        raise DeploymentNotFound(
            f"There is no deployment {deployment_id}.", hint="List them with GET /api/v1/deployments."
        )
    return deployment


def stop_deployment(session: Session, deployment_id: str, force: bool, key_id: str) -> Deployment:
    """Stop a deployment, which changes nothing if it is stopped already; that of a fine-tuned model sleeps.

    Raises DeploymentHasAlias without `force`: the alias would route to its other targets, or return 503; and
    ServedModelForbidden if the key may not use the model.
    """
    deployment = get_deployment(session, deployment_id)
    check_names(session, key_id, [deployment.name])
    aliases = list_alias_names(session, deployment.name) if deployment.replaces is None else []
    if aliases and not force and deployment.status in lifecycle.LIVE:
        raise DeploymentHasAlias(
            f"The alias {aliases[0]!r} routes to {deployment.name!r}, so {deployment.id} was not stopped.",
            hint=f"Change the alias first: PUT /api/v1/aliases/{aliases[0]}; or stop it with ?force=true.",
        )
    lifecycle.stop(session, deployment_id)
    return get_deployment(session, deployment_id)


class DeploymentLive(Conflict):
    """The deployment has not ended."""

    code = ErrorCode.deployment_live


def delete_deployment(session: Session, deployment_id: str, key_id: str) -> None:
    """Delete the row of a deployment that has ended.

    Raises DeploymentNotFound, DeploymentLive, and ServedModelForbidden if the key may not use the model.
    """
    deployment = get_deployment(session, deployment_id)
    check_names(session, key_id, [deployment.name])
    if not deployment.status.finished:
        stop = f"Stop it first: POST /api/v1/deployments/{deployment_id}/stop."
        raise DeploymentLive(
            f"The status of {deployment_id} is {deployment.status}; only a deployment that is stopped or "
            "failed can be deleted.",
            # One that is stopped would only fall asleep.
            hint=f"Delete its model: DELETE /v1/models/{deployment.name}."
            if deployment.is_on_demand
            else stop,
            used_by=list_alias_names(session, deployment.name),
        )
    session.delete(deployment)


def wake_deployment(session: Session, deployment_id: str, key_id: str) -> Deployment:
    """Queue a sleeping deployment; in any other status nothing changes.

    Raises DeploymentNotFound, and ServedModelForbidden if the key may not use the model.
    """
    check_names(session, key_id, [get_deployment(session, deployment_id).name])
    lifecycle.wake(session, deployment_id)
    return get_deployment(session, deployment_id)


def view_deployment(session: Session, deployment: Deployment) -> DeploymentView:
    """Build the view of a deployment, with what it waits for if it is queued."""
    if deployment.current_status is not DeploymentStatus.queued:
        return deployment_view(deployment, None)
    missing = workers.explain_missing_deployment_worker(session, deployment.queue, deployment.engine)
    unclaimed = missing or explain_unclaimed(session, deployment)
    return deployment_view(deployment, unclaimed, has_worker=missing is None)
