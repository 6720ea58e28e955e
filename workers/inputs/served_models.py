"""The models that a run's program reaches by HTTP, and what it may do besides."""

from app.deployments import served_models
from app.graders.run import python_grader_environment
from app.rescues.account import openai_environment
from app.settings import Settings
from trainers.configs.base import EndpointModel
from trainers.configs.engines import split_capabilities
from trainers.configs.graders import PYTHON_GRADER
from trainers.configs.references import find_served_models
from trainers.configs.stage_config import AnyStage
from trainers.configs.stages.migration.fetch import OPENAI
from trainers.runtime.error_codes import ErrorCode
from workers.hosts.environments import proxy_environment
from workers.inputs.errors import LaunchError


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
