"""The most likely cause of a loss or gradient that is not finite, from the state of the run."""

import math

import torch
from transformers import TrainerState

from trainers.configs.training import Precision, TrainingConfig
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import ProgramError

MAX_REPORTED_LOGS = 5
# A gradient norm that grows by this factor was diverging before it overflowed.
DIVERGENCE_FACTOR = 10.0


class LossNotFinite(ProgramError):
    code = ErrorCode.loss_not_finite


def diagnose_non_finite(
    config: TrainingConfig, damaged_weight: str | None, state: TrainerState, values: dict[str, float]
) -> LossNotFinite:
    """Return the error for a loss or gradient norm that is not finite, with its likely cause and a fix.

    `damaged_weight` is the name of a frozen weight that is not finite, if there is one.
    """
    name = next(name for name in ("loss", "grad_norm") if not math.isfinite(values.get(name, 0.0)))
    cause, hint = _find_cause(config, damaged_weight, state)
    return LossNotFinite(
        f"The {name} is {values[name]} at step {state.global_step}, so the weights are unusable from here. "
        f"{cause} {_describe_history(state)}",
        f"{hint} The last checkpoint was saved before this step.",
    )


def _find_cause(config: TrainingConfig, damaged_weight: str | None, state: TrainerState) -> tuple[str, str]:
    if damaged_weight is not None:
        return (
            f"The frozen weight {damaged_weight} contains values that are not finite: the base is damaged.",
            "Download the base again, or use another one.",
        )
    norms = [entry["grad_norm"] for entry in _finite_logs(state) if "grad_norm" in entry]
    assert config.learning_rate is not None
    default = config.default_learning_rates[config.tuning.method]
    if config.learning_rate > default:
        factor = config.learning_rate / default
        return (
            f"learning_rate {config.learning_rate:g} is {factor:.3g} times the default of "
            f"{config.tuning.method} tuning.",
            f"Lower learning_rate, to {default:g} at first, or raise warmup_ratio.",
        )
    if len(norms) > 1 and norms[-1] > DIVERGENCE_FACTOR * min(norms):
        return "The gradient norm had been growing before.", "Lower learning_rate or max_grad_norm."
    if not norms:
        return (
            "No step was finite, at an ordinary learning rate: weights or rows are damaged.",
            "Run the stage `preflight` on it, and download the base again.",
        )
    if config.precision is not Precision.fp32:
        return "The earlier steps show no cause.", "Train in fp32 to rule out the range of the number format."
    return "The earlier steps show no cause.", "Check the rows of this step, or lower learning_rate."


def find_damaged_weight(model: torch.nn.Module) -> str | None:
    """Return the name of a frozen weight that contains values that are not finite, or None."""
    for name, weight in model.named_parameters():
        if not weight.requires_grad and weight.is_floating_point() and not weight.isfinite().all():
            return str(name)
    return None


def _describe_history(state: TrainerState) -> str:
    steps = [
        f"step {entry['step']} loss {entry['loss']:.4g} gradient norm {entry.get('grad_norm', math.nan):.3g}"
        for entry in _finite_logs(state)[-MAX_REPORTED_LOGS:]
    ]
    return f"Before: {'; '.join(steps)}." if steps else "No earlier step was logged."


def _finite_logs(state: TrainerState) -> list[dict[str, float]]:
    return [
        entry
        for entry in state.log_history
        if math.isfinite(entry.get("loss", math.nan)) and math.isfinite(entry.get("grad_norm", 0.0))
    ]
