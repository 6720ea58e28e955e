"""The models that a run's program reaches by HTTP: the operator's endpoints, and deployments."""

import json

from sqlmodel import col, select

from app.settings import Settings
from app.storage.database import read_session
from app.tables import Deployment
from app.tables.deployment import DeploymentStatus
from trainers.configs.base import DeployedModel, EndpointModel
from trainers.configs.references import find_served_models
from trainers.configs.stage_config import AnyStage
from trainers.runtime.endpoints import DEPLOYMENTS_VARIABLE, endpoint_variables
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.redaction import add_secrets
from workers.hosts.environments import proxy_environment
from workers.inputs.errors import LaunchError


class ServedModelMissing(LaunchError):
    code = ErrorCode.capability_missing


def served_model_environment(config: AnyStage, settings: Settings) -> dict[str, str]:
    """Return the variables with address and key of each model that the config names, and of no other.

    Raises ServedModelMissing for an endpoint that this worker does not have, or a deployment without engine.
    """
    variables: dict[str, str] = {}
    addresses: dict[str, tuple[str, str]] = {}
    for _, model in find_served_models(config):
        if isinstance(model, EndpointModel):
            variables |= _endpoint_variables(model, settings)
        else:
            addresses[model.deployment] = _find_address(model)
    return variables | ({DEPLOYMENTS_VARIABLE: json.dumps(addresses)} if addresses else {})


def _endpoint_variables(model: EndpointModel, settings: Settings) -> dict[str, str]:
    endpoint = settings.evaluation_endpoints.get(model.endpoint)
    if endpoint is None:
        raise ServedModelMissing(
            f"This worker has no endpoint {model.endpoint!r}.",
            "Add it to TUNESMITH_EVALUATION_ENDPOINTS on the workers, as on the API.",
        )
    url, key = endpoint_variables(model.endpoint)
    secret = endpoint.api_key.get_secret_value()
    # What the program writes is copied by this process, which must recognize the key.
    add_secrets([secret])
    return {url: endpoint.url, key: secret, **proxy_environment()}


def _find_address(model: DeployedModel) -> tuple[str, str]:
    """Return the base URL of a deployment's engine, and the name of the model on it."""
    ready = col(Deployment.status) == DeploymentStatus.ready
    query = select(Deployment).where(col(Deployment.name) == model.deployment, ready)
    with read_session() as session:
        deployment = session.exec(query.order_by(col(Deployment.id).desc()).limit(1)).one_or_none()
    if deployment is None or deployment.address is None:
        raise ServedModelMissing(
            f"The deployment {model.deployment!r} is not ready, so nothing can be generated with it.",
            "Create it, or wake it with a request, wait until it is ready, and retry the job.",
        )
    return f"{deployment.address.rstrip('/')}/v1", deployment.upstream_model or deployment.name
