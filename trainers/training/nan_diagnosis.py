"""Why a loss is no number any more: what of the run speaks for which cause."""

import math

import torch
from transformers import TrainerState

from trainers.configs.training import Precision, TrainingConfig
from trainers.runtime.errors import LossNotFinite

LOGS_LOOKED_AT = 5
# A gradient that grows so much between two logs was running away before it overflowed.
RUNAWAY = 10.0


def diagnose_non_finite(
    config: TrainingConfig, model: torch.nn.Module, state: TrainerState, values: dict[str, float]
) -> LossNotFinite:
    """The error for a loss or gradient norm that is not finite, with the most likely cause and a remedy."""
    name = next(name for name in ("loss", "grad_norm") if not math.isfinite(values.get(name, 0.0)))
    cause, hint = _cause(config, model, state)
    return LossNotFinite(
        f"The {name} is {values[name]} at step {state.global_step}, so the weights are lost from here on. "
        f"{cause} {_trend(state)}",
        f"{hint} The last checkpoint is from before.",
    )


def _cause(config: TrainingConfig, model: torch.nn.Module, state: TrainerState) -> tuple[str, str]:
    frozen = _not_finite(model, trained=False)
    if frozen is not None:
        return (
            f"The frozen weight {frozen} holds values that are not finite: the base was broken before.",
            "Load the base again, or take another one.",
        )
    norms = [entry["grad_norm"] for entry in _finite_logs(state) if "grad_norm" in entry]
    assert config.learning_rate is not None
    usual = config.default_learning_rates[config.tuning.method]
    if config.learning_rate > usual:
        times = config.learning_rate / usual
        return (
            f"learning_rate {config.learning_rate:g} is {times:.3g} times the default of "
            f"{config.tuning.method} tuning.",
            f"Lower learning_rate, to {usual:g} at first, or lengthen the warm-up.",
        )
    if len(norms) > 1 and norms[-1] > RUNAWAY * min(norms):
        return "The gradients had been growing before.", "Lower learning_rate or max_grad_norm."
    if not norms:
        return (
            "It was so from the first step on, at an ordinary learning rate: weights or rows are broken.",
            "Run the stage `preflight` on it, and load the base again.",
        )
    if config.precision is not Precision.fp32:
        return "Nothing led up to it.", "Train in fp32 to see whether the number format is too narrow."
    return "Nothing led up to it.", "Look at the rows of this step, or lower learning_rate."


def _not_finite(model: torch.nn.Module, *, trained: bool) -> str | None:
    """Name of the first weight with a value that is not finite, among those that are trained or are not."""
    for name, weight in model.named_parameters():
        if weight.requires_grad is trained and weight.is_floating_point() and not weight.isfinite().all():
            return name
    return None


def _trend(state: TrainerState) -> str:
    """The last losses before, for a person to look at."""
    told = [
        f"step {entry['step']} loss {entry['loss']:.4g} gradient {entry.get('grad_norm', math.nan):.3g}"
        for entry in _finite_logs(state)[-LOGS_LOOKED_AT:]
    ]
    return f"Before: {'; '.join(told)}." if told else "No step before it was logged."


def _finite_logs(state: TrainerState) -> list[dict[str, float]]:
    return [
        entry
        for entry in state.log_history
        if math.isfinite(entry.get("loss", math.nan)) and math.isfinite(entry.get("grad_norm", 0.0))
    ]
