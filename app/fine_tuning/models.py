"""Deletion of fine-tuned models by the names that clients of the OpenAI API give them."""

from sqlalchemy import select
from sqlmodel import Session, col

from app.aliases.targets import list_alias_names
from app.deployments import lifecycle
from app.fine_tuning.checkpoints import FineTunedModelNotFound
from app.fine_tuning.names import find_model_id
from app.http.errors import InUse
from app.keys.limits import check_names
from app.models import service as models
from app.tables import Deployment, DeploymentStatus


def delete_model(session: Session, name: str, key_id: str) -> None:
    """Delete a fine-tuned model or the model of a checkpoint, with its sleeping deployment.

    Raises ServedModelForbidden if the key may not use the model, FineTunedModelNotFound, and InUse while it
    is deployed, routed to, or used by jobs and models.
    """
    check_names(session, key_id, [name])
    model_id = find_model_id(session, name)
    if model_id is None:
        raise FineTunedModelNotFound(
            f"There is no fine-tuned model {name!r}.", hint="List the models with GET /v1/models."
        )
    if aliases := list_alias_names(session, name):
        raise InUse(f"The alias {aliases[0]!r} routes to {name!r}.", hint="Change it first.", used_by=aliases)
    live = select(Deployment).where(
        col(Deployment.name) == name, col(Deployment.status).in_(lifecycle.UNFINISHED)
    )
    for deployment in session.scalars(live.with_for_update()).all():
        if deployment.status is not DeploymentStatus.asleep:
            is_stopping = deployment.status is DeploymentStatus.stopping
            stop = f"Stop it first: POST /api/v1/deployments/{deployment.id}/stop."
            raise InUse(
                f"The model {name!r} is deployed: {deployment.id} is {deployment.status}.",
                hint="Wait until it has stopped." if is_stopping else stop,
                used_by=[deployment.id],
            )
        lifecycle.retire(session, deployment.id)
    models.delete_model(session, model_id)
