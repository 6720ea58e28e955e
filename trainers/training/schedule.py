"""The learning rate of each optimizer step."""

import math
from functools import partial
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from trainers.configs.training import LearningRateSchedule, TrainingConfig
from trainers.runtime.errors import ConfigInvalid


class ScheduleMixin:
    """A Trainer whose warm-up begins above 0; that of transformers wastes the first step on a rate of 0."""

    args: Any
    optimizer: Any
    lr_scheduler: Any

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Create the scheduler, unless there is one; the Trainer calls this before the first step."""
        if self.lr_scheduler is None:
            share = partial(
                learning_rate_share,
                schedule=LearningRateSchedule(self.args.lr_scheduler_type),
                warmup_steps=self.args.get_warmup_steps(num_training_steps),
                total_steps=num_training_steps,
            )
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, share)
            self._created_lr_scheduler = True
        return self.lr_scheduler


def learning_rate_share(
    step: int, schedule: LearningRateSchedule, warmup_steps: int, total_steps: int
) -> float:
    """Return the share of the peak learning rate in a step, counted from 0; no step has a share of 0.

    The warm-up of n steps rises from 1/n to 1. The decay would reach 0 one step after the last.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    # The Trainer asks for the rate of the step after the last, too.
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    match schedule:
        case LearningRateSchedule.constant:
            return 1.0
        case LearningRateSchedule.linear:
            return 1.0 - progress
        case LearningRateSchedule.cosine:
            return 0.5 * (1.0 + math.cos(math.pi * progress))


def count_warmup_steps(config: TrainingConfig, steps: int) -> int:
    """Return the number of steps in which the learning rate rises to its peak."""
    return math.ceil(config.warmup_ratio * steps)


def check_learning_rates(config: TrainingConfig, steps: int) -> None:
    """Raise ConfigInvalid if no step has a learning rate above 0 in the optimizer's number format."""
    assert config.learning_rate is not None
    warmup = count_warmup_steps(config, steps)
    # The last step of the warm-up has the highest rate.
    peak = config.learning_rate * learning_rate_share(max(0, warmup - 1), config.schedule, warmup, steps)
    if not torch.tensor(peak, dtype=torch.float32).item() > 0:
        raise ConfigInvalid(
            f"The learning rate is 0 in all {steps} steps: learning_rate {config.learning_rate:g} is below "
            "the smallest number of fp32.",
            f"Raise learning_rate; the default is {config.default_learning_rates[config.tuning.method]:g}.",
        )
