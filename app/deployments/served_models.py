"""The models that a program reaches by HTTP: the operator's endpoints, and deployments."""

import json
from typing import Any

from pydantic import BaseModel
from sqlmodel import Session, col, select

from app.settings import Settings
from app.storage.database import read_session
from app.tables import Deployment, DeploymentStatus, current_status
from trainers.configs import EngineTask
from trainers.configs.base import EndpointModel, ServedModel
from trainers.configs.references import find_served_models
from trainers.runtime.endpoints import DEPLOYMENTS_VARIABLE, endpoint_variables
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import TunesmithError
from trainers.runtime.redaction import add_secrets

# The field of graders with a model that embeds; all others generate.
EMBEDDING_FIELD = "embedding_model"


class ServedModelUnreachable(TunesmithError):
    """This process has no address of a model that already generates."""

    code = ErrorCode.capability_missing


def explain_missing_model(session: Session, model: ServedModel, settings: Settings, field: str) -> str | None:
    """Return that the operator has not named a model's endpoint, or that it is not deployed; else None.

    The last part of the field's path decides whether a deployment must generate text or compute embeddings.
    """
    if isinstance(model, EndpointModel):
        if model.endpoint in settings.evaluation_endpoints:
            return None
        names = ", ".join(sorted(settings.evaluation_endpoints)) or "none"
        return (
            f"There is no endpoint {model.endpoint!r}; there are: {names}. The operator adds them to "
            "TUNESMITH_EVALUATION_ENDPOINTS."
        )
    query = select(Deployment).where(col(Deployment.name) == model.deployment)
    tasks = {deployment.task for deployment in session.exec(query) if not deployment.status.finished}
    embeds = field.rpartition(".")[2] == EMBEDDING_FIELD
    if not tasks:
        return f"There is no live deployment {model.deployment!r}."
    if (EngineTask.embed if embeds else EngineTask.generate) in tasks:
        return None
    if embeds:
        return f"The deployment {model.deployment!r} generates text: name one with `task: embed`."
    return f"The deployment {model.deployment!r} computes embeddings: name one that generates text."


def served_model_environment(config: BaseModel, settings: Settings) -> dict[str, str]:
    """Return the variables with address and key of each model that the config names, and of no other.

    Raises ServedModelUnreachable for an endpoint that this process does not have, or a deployment without
    engine.
    """
    variables: dict[str, str] = {}
    addresses: dict[str, tuple[str, str]] = {}
    for _, model in find_served_models(config):
        if isinstance(model, EndpointModel):
            variables |= _endpoint_variables(model, settings)
        else:
            addresses[model.deployment] = _find_address(model.deployment)
    return variables | ({DEPLOYMENTS_VARIABLE: json.dumps(addresses)} if addresses else {})


def _endpoint_variables(model: EndpointModel, settings: Settings) -> dict[str, Any]:
    endpoint = settings.evaluation_endpoints.get(model.endpoint)
    if endpoint is None:
        raise ServedModelUnreachable(
            f"This worker has no endpoint {model.endpoint!r}.",
            "Add it to TUNESMITH_EVALUATION_ENDPOINTS on the workers, as on the API.",
        )
    url, key = endpoint_variables(model.endpoint)
    secret = endpoint.api_key.get_secret_value()
    # What the program writes is copied by this process, which must recognize the key.
    add_secrets([secret])
    return {url: endpoint.url, key: secret}


def _find_address(name: str) -> tuple[str, str]:
    """Return the base URL of a deployment's engine, and the name of the model on it."""
    ready = current_status() == DeploymentStatus.ready
    query = select(Deployment).where(col(Deployment.name) == name, ready)
    with read_session() as session:
        deployment = session.exec(query.order_by(col(Deployment.id).desc()).limit(1)).one_or_none()
    if deployment is None or deployment.address is None:
        raise ServedModelUnreachable(
            f"The deployment {name!r} is not ready, so nothing can be generated with it.",
            "Create it, or wake it with a request, wait until it is ready, and retry.",
        )
    return f"{deployment.address.rstrip('/')}/v1", deployment.upstream_model or deployment.name
