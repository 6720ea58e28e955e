"""Asking for a deployment: which engine it may share, and how it comes by its name."""

import hashlib
import json

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col

from app.deployments import lifecycle
from app.http.errors import Conflict
from app.settings import get_settings
from app.storage.database import lock_name
from app.tables import Alias, Deployment, Model, ModelKind
from trainers.configs import DeploymentChoice, Queue
from trainers.runtime.error_codes import ErrorCode


class NameIsAlias(Conflict):
    """An alias has the name that a deployment is to have."""

    code = ErrorCode.name_is_alias


def build_deployment(
    session: Session, name: str, reference: str, choice: DeploymentChoice, queue: Queue
) -> Deployment:
    """The row of a deployment; `reference` is a hub id, a folder or an id of the registry."""
    origin, template = _origin(session, reference)
    options = choice.options.model_dump(mode="json", exclude_defaults=True)
    shared = [choice.engine, queue, origin, options, template if choice.engine.one_template else None]
    settings = get_settings()
    idle_seconds = settings.idle_seconds if choice.idle_seconds is None else choice.idle_seconds
    return Deployment(
        name=name,
        base=origin,
        model_id=reference if reference.startswith("model_") else None,
        engine=choice.engine,
        options=options,
        queue=queue,
        engine_key=hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()[:16],
        idle_seconds=idle_seconds,
        parity_mode=settings.parity if choice.parity is None else choice.parity,
    )


def insert_deployment(session: Session, deployment: Deployment) -> Deployment:
    """Ask for a deployment; what holds its name is stopped when it is ready, or now if both do not fit.

    Raises NameIsAlias.
    """
    lock_name(session, deployment.name)
    if session.get(Alias, deployment.name) is not None:
        raise NameIsAlias(
            f"{deployment.name!r} is an alias, so no deployment can have this name.",
            hint=f"Choose another name, or delete the alias: DELETE /api/v1/aliases/{deployment.name}.",
        )
    while True:
        deployment.replaces = _make_way(session, deployment)
        try:
            with session.begin_nested():
                session.add(deployment)
        except IntegrityError:
            # Another request of this name was first and is committed now: it is looked at anew.
            continue
        return deployment


def _origin(session: Session, reference: str) -> tuple[str, str | None]:
    """The whole weights below a model, and the hash of the template that the model was trained with."""
    template = None
    while reference.startswith("model_"):
        model = session.get_one(Model, reference)
        template = template or model.template_sha256
        if model.kind is ModelKind.base:
            break
        reference = model.base
    return reference, template


def _make_way(session: Session, deployment: Deployment) -> str | None:
    """Stop what the new one cannot stand beside; answers the holder that serves on until then."""
    live = select(Deployment).where(
        col(Deployment.name) == deployment.name, col(Deployment.status).in_(lifecycle.LIVE)
    )
    serves_on = None
    for other in session.scalars(live.execution_options(populate_existing=True)).all():
        # Two engines find no room on one GPU, but a second model may find room in one engine.
        fits = deployment.queue is not Queue.cuda or deployment.engine_key == other.engine_key
        if other.replaces is None and other.ready_at is not None and fits:
            serves_on = other.id
        else:
            lifecycle.stop(session, other.id)
    return serves_on
