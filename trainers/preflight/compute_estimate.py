"""Estimates of the arithmetic of a training stage, for its time on a CPU. Imports no torch."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from trainers.configs.on_policy import OnPolicyConfig
from trainers.configs.stages.dpo import DpoConfig
from trainers.configs.stages.grpo import GrpoConfig
from trainers.configs.stages.kto import KtoConfig
from trainers.configs.training import LoraTuning, TrainingConfig
from trainers.modeling.model_config import EXPERT_COUNTS

WARNING_SECONDS = 3600.0
# A core of a server reaches 60 to 100 GFLOP/s in large products of float32 matrices; training about half.
CORE_FLOPS = 40e9
TRAINING_SHARE = 0.5
# With fewer steps at a default learning rate, a model hardly differs from its base.
MIN_STEPS = 10
FEW_STEPS_HINT = "Use more rows, raise epochs, or lower batch_size."
# English has about four bytes of JSON per token, Korean about three.
BYTES_PER_TOKEN = 4
_SIZE_IN_NAME = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([BM])(?![A-Za-z0-9])", re.IGNORECASE)


def estimate_flops(config: TrainingConfig, parameters: float, rows: int, tokens_per_row: float) -> float:
    """Return the floating-point operations of a stage.

    A token takes 2 operations per parameter in a forward pass and 4 in a backward one, half of which are for
    the gradients of weights that LoRA does not train (Kaplan et al., 2020, arXiv:2001.08361).
    """
    steps_rows = config.max_steps * config.rows_per_step if config.max_steps else rows * config.epochs
    per_token = 4 if isinstance(config.tuning, LoraTuning) else 6
    if config.activation_checkpointing is True:
        per_token += 2
    sequences, tokens = steps_rows, tokens_per_row
    if isinstance(config, OnPolicyConfig):
        # Each completion is generated, and scored by a teacher or by the policy of the step before.
        sequences *= config.num_generations if isinstance(config, GrpoConfig) else 1
        tokens += config.max_completion_length
        per_token += 4
    elif isinstance(config, DpoConfig | KtoConfig):
        per_token += 2
    return sequences * tokens * per_token * parameters


def describe_few_steps(config: TrainingConfig, rows: int) -> str | None:
    """Return what is wrong if the rows make few optimizer steps; a number that the config states is meant."""
    steps = math.ceil(rows * config.epochs / config.rows_per_step)
    if config.max_steps or not 0 < steps < MIN_STEPS:
        return None
    return (
        f"The stage takes {steps} optimizer step{'s' if steps > 1 else ''} ({rows} rows, "
        f"{config.rows_per_step} a step, epochs {config.epochs:g}), which hardly changes a model."
    )


def count_parameters(config: Mapping[str, Any]) -> float | None:
    """Return the parameters of a model with all of its experts, from its `config.json`; None if unknown."""
    return _count_parameters(config, EXPERT_COUNTS)


def count_active_parameters(config: Mapping[str, Any]) -> float | None:
    """Return the parameters that a token passes through, from a model's `config.json`; None if unknown."""
    return _count_parameters(config, ("num_experts_per_tok",))


def _count_parameters(config: Mapping[str, Any], expert_counts: Sequence[str]) -> float | None:
    text = config.get("text_config") or config
    try:
        width, layers = int(text["hidden_size"]), int(text["num_hidden_layers"])
        inner = int(text.get("moe_intermediate_size") or text.get("intermediate_size") or 4 * width)
        experts = next((int(text[name]) for name in expert_counts if text.get(name)), 1)
        vocabulary = int(text["vocab_size"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return layers * (4 * width**2 + 3 * width * inner * experts) + vocabulary * width


def read_size_in_name(name: str) -> float | None:
    """Return the parameters that a model's name states, such as 0.5 billion for `Qwen2.5-0.5B-Instruct`."""
    found = _SIZE_IN_NAME.findall(name)
    if not found:
        return None
    number, unit = found[-1]
    return float(number) * (1e9 if unit in "bB" else 1e6)


def describe_duration(seconds: float) -> str:
    """Return a duration in hours or days, without false precision."""
    hours = seconds / 3600
    return f"{hours:.0f} hours" if hours < 48 else f"{hours / 24:.0f} days"
