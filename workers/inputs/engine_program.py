"""The command of the engine that a training program starts itself."""

from typing import TypeVar

from app.settings import Settings
from trainers.configs import AnyStage, EngineSampledConfig, PreflightConfig

C = TypeVar("C", bound=AnyStage)


def place_engine_program(config: C, settings: Settings) -> C:
    """Return the config with the command of this host's engine, if one generates completions of the stage."""
    if isinstance(config, PreflightConfig):
        return config.model_copy(update={"target": place_engine_program(config.target, settings)})
    if not isinstance(config, EngineSampledConfig) or config.generation.engine is None:
        return config
    command = settings.engine_commands.get(config.generation.engine)
    return config.model_copy(update={"engine_program": command or None})
