"""The models that a run's program reaches by HTTP, and what it may do besides."""

import logging
import time

from sqlmodel import col, select

from app.deployments import served_models
from app.graders.run import python_grader_environment
from app.rescues.account import openai_environment
from app.routing_table.service import record_use
from app.scheduling.incidents import describe_error
from app.settings import Settings
from app.storage.database import DATABASE_UNAVAILABLE, transaction
from app.tables import Deployment, DeploymentStatus
from trainers.configs.base import DeployedModel, EndpointModel
from trainers.configs.engines import split_capabilities
from trainers.configs.graders import PYTHON_GRADER
from trainers.configs.references import find_served_models
from trainers.configs.stage_config import AnyStage
from trainers.configs.stages.migration.fetch import OPENAI
from trainers.runtime.error_codes import ErrorCode
from workers.hosts.environments import proxy_environment
from workers.inputs.errors import LaunchError

# Below the shortest time after which an unused deployment may sleep.
USE_SECONDS = 1.0

logger = logging.getLogger(__name__)


class ServedModelMissing(LaunchError):
    code = ErrorCode.capability_missing


def served_model_environment(config: AnyStage, settings: Settings) -> dict[str, str]:
    """Return the variables with address and key of each model that the config names, and of no other.

    Raises ServedModelMissing for an endpoint that this worker does not have, or a deployment without engine.
    """
    try:
        variables = served_models.served_model_environment(config, settings)
    except served_models.ServedModelUnreachable as error:
        raise ServedModelMissing(error.message, error.hint) from error
    if OPENAI in split_capabilities(config.capability):
        variables |= openai_environment(settings) | proxy_environment()
    if any(isinstance(model, EndpointModel) for _, model in find_served_models(config)):
        variables |= proxy_environment()
    if PYTHON_GRADER in split_capabilities(config.capability):
        variables |= python_grader_environment(settings)
    return variables


class DeploymentUse:
    """Keeps the deployments awake that a program uses: its requests reach the engines without a gateway."""

    def __init__(self, config: AnyStage) -> None:
        """Find the deployments that the config names; without any, `poll` does nothing."""
        models = [model for _, model in find_served_models(config)]
        self._names = {model.deployment for model in models if isinstance(model, DeployedModel)}
        self._recorded_at = float("-inf")

    def poll(self) -> None:
        """Record the use if the last record is older than `USE_SECONDS`."""
        if not self._names or time.monotonic() - self._recorded_at < USE_SECONDS:
            return
        self._recorded_at = time.monotonic()
        is_used = col(Deployment.name).in_(self._names), col(Deployment.status) == DeploymentStatus.ready
        try:
            with transaction() as session:
                record_use(session, session.exec(select(col(Deployment.id)).where(*is_used)).all())
        except DATABASE_UNAVAILABLE as error:
            logger.warning("cannot record the use of deployments: %s", describe_error(error))
