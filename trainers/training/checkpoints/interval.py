"""When checkpoints are saved: after a number of steps or an epoch, or by the time since the last one."""

import time
from collections.abc import Callable

from trainers.configs.stages.grpo import GrpoConfig
from trainers.configs.training import TrainingConfig
from trainers.configs.validation import ValidatedTrainingConfig

STEPS_BETWEEN_VALIDATIONS = 100


def steps_between_checkpoints(config: TrainingConfig, steps: int) -> int | None:
    """Return the number of optimizer steps between two checkpoints; None if time decides."""
    if config.save_every_epoch and config.max_steps is None:
        # `total_steps` rounds the steps of an epoch up, so whole epochs have equal numbers of steps.
        return max(1, round(steps / config.epochs))
    return config.save_every_steps


def steps_between_validations(config: ValidatedTrainingConfig | GrpoConfig, steps: int) -> int:
    """Return the number of optimizer steps between two validations."""
    return (
        config.validate_every_steps or steps_between_checkpoints(config, steps) or STEPS_BETWEEN_VALIDATIONS
    )


class CheckpointTimer:
    """The time since the last checkpoint, in a run whose checkpoints are saved by time."""

    def __init__(self, config: TrainingConfig, steps: int, now: Callable[[], float] = time.monotonic) -> None:
        self._seconds = 60 * config.save_every_minutes
        self._is_used = steps_between_checkpoints(config, steps) is None
        self._now = now
        self._saved_at = now()

    @property
    def is_due(self) -> bool:
        """Whether a checkpoint must be saved after this step."""
        return self._is_used and self._now() - self._saved_at >= self._seconds

    def restart(self) -> None:
        """Record that a checkpoint has been saved."""
        self._saved_at = self._now()
