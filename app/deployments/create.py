"""Creation of deployments: the engine that one may share, and the takeover of its name."""

import hashlib
import json

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col

from app.deployments import lifecycle
from app.http.errors import Conflict
from app.settings import get_settings
from app.storage.database import lock_name
from app.tables import Alias, Deployment, DeploymentStatus, Model, ModelKind
from trainers.configs import DeploymentChoice, EngineTask, Queue
from trainers.runtime.error_codes import ErrorCode


class NameIsAlias(Conflict):
    """The name requested for a deployment belongs to an alias."""

    code = ErrorCode.name_is_alias


def build_deployment(
    session: Session, name: str, reference: str, choice: DeploymentChoice, queue: Queue
) -> Deployment:
    """Build the row of a deployment of a hub id, a folder or a registry id."""
    base, template = _find_base(session, reference)
    options = choice.options.model_dump(mode="json", exclude_defaults=True)
    engine = [choice.engine, queue, base, options, template if choice.engine.has_single_template else None]
    if choice.task is EngineTask.embed:
        engine += [choice.task, choice.pooling]
    settings = get_settings()
    idle_seconds = settings.idle_seconds if choice.idle_seconds is None else choice.idle_seconds
    return Deployment(
        name=name,
        base=base,
        model_id=reference if reference.startswith("model_") else None,
        engine=choice.engine,
        options=options,
        task=choice.task,
        pooling=choice.pooling,
        queue=queue,
        engine_key=hashlib.sha256(json.dumps(engine, sort_keys=True).encode()).hexdigest()[:16],
        idle_seconds=idle_seconds,
        store_days=choice.store_days,
        parity_mode=settings.parity if choice.parity is None else choice.parity,
    )


def insert_deployment(session: Session, deployment: Deployment) -> Deployment:
    """Insert a queued deployment that takes over its name when it is ready; raises NameIsAlias.

    A deployment that serves the name now is stopped then, or at once if the hardware has no room for both.
    """
    lock_name(session, deployment.name)
    if session.get(Alias, deployment.name) is not None:
        raise NameIsAlias(
            f"{deployment.name!r} is an alias, so no deployment can have this name.",
            hint=f"Choose another name, or delete the alias: DELETE /api/v1/aliases/{deployment.name}.",
        )
    while True:
        deployment.replaces = _stop_others(session, deployment)
        try:
            with session.begin_nested():
                session.add(deployment)
        except IntegrityError:
            # Another request for this name was committed meanwhile: check again.
            continue
        return deployment


def insert_sleeping_deployment(session: Session, deployment: Deployment) -> Deployment:
    """Insert a deployment that the first request for its name wakes; no other may have the name."""
    deployment.status = DeploymentStatus.asleep
    session.add(deployment)
    session.flush()
    return deployment


def _find_base(session: Session, reference: str) -> tuple[str, str | None]:
    """Return the full weights under a model, and the hash of the template that the model was trained with."""
    template = None
    while reference.startswith("model_"):
        model = session.get_one(Model, reference)
        template = template or model.template_sha256
        if model.kind is ModelKind.base:
            break
        reference = model.base
    return reference, template


def _stop_others(session: Session, deployment: Deployment) -> str | None:
    """Stop deployments of the same name, except the owner if it can serve until the new one is ready.

    Returns the id of that owner.
    """
    live = select(Deployment).where(
        col(Deployment.name) == deployment.name, col(Deployment.status).in_(lifecycle.LIVE)
    )
    owner_id = None
    for other in session.scalars(live.execution_options(populate_existing=True)).all():
        # One GPU has no room for two engines, but one engine may have room for a second model.
        fits = deployment.queue is not Queue.cuda or deployment.engine_key == other.engine_key
        if other.replaces is None and other.ready_at is not None and fits:
            owner_id = other.id
        else:
            lifecycle.stop(session, other.id)
    return owner_id
