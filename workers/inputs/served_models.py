"""The models that a run's program reaches by HTTP, and what it may do besides."""

import logging
import time
from collections.abc import Callable, Collection

from sqlmodel import col, select

from app.deployments import lifecycle, served_models
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
from workers.inputs.errors import LaunchError, LaunchStopped

# Below the shortest time after which an unused deployment may sleep.
USE_SECONDS = 1.0
# A run can wait for longer than a client: a large model takes minutes to load.
WAKE_SECONDS = 1800.0
WAKE_POLL_SECONDS = 0.5

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


def wake_served_models(config: AnyStage, should_stop: Callable[[], bool]) -> None:
    """Wake the deployments that the config names, and wait for those that are starting.

    A program's requests go to the engines directly, and so wake nothing. A deployment that has ended is not
    waited for. Raises LaunchStopped when `should_stop` returned True.
    """
    names = _list_deployments(config)
    deadline = time.monotonic() + WAKE_SECONDS
    may_wake = True
    while names and _is_any_starting(names, may_wake) and time.monotonic() < deadline:
        # One that falls asleep again could not start.
        may_wake = False
        if should_stop():
            raise LaunchStopped
        time.sleep(WAKE_POLL_SECONDS)


def _is_any_starting(names: Collection[str], may_wake: bool) -> bool:
    """Return whether a deployment of these names is starting; with `may_wake`, after waking those asleep."""
    # One that replaces another deployment has its name only once it is ready.
    live = col(Deployment.status).in_(lifecycle.LIVE), col(Deployment.replaces).is_(None)
    with transaction() as session:
        found = session.exec(select(Deployment).where(col(Deployment.name).in_(names), *live)).all()
        ready = {held.name for held in found if held.is_ready}
        waiting = [held for held in found if held.name not in ready]
        asleep = [held.id for held in waiting if held.status is DeploymentStatus.asleep]
        if may_wake:
            for deployment_id in asleep:
                lifecycle.wake(session, deployment_id)
    return len(waiting) > (0 if may_wake else len(asleep))


def _list_deployments(config: AnyStage) -> set[str]:
    models = [model for _, model in find_served_models(config)]
    return {model.deployment for model in models if isinstance(model, DeployedModel)}


class DeploymentUse:
    """Keeps the deployments awake that a program uses: its requests reach the engines without a gateway."""

    def __init__(self, config: AnyStage) -> None:
        """Find the deployments that the config names; without any, `poll` does nothing."""
        self._names = _list_deployments(config)
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
