"""A check of the reference with which preference losses compare the model."""

from pathlib import Path
from typing import Any, TypeVar

from transformers import TrainerControl, TrainerState, TrainingArguments

from trainers.configs.stages.dpo import DpoConfig
from trainers.configs.stages.kto import KtoConfig
from trainers.configs.training import Precision
from trainers.runtime.events import EventWriter
from trainers.runtime.program import StopFlag
from trainers.training.callback import RunDirCallback

ReferenceConfig = TypeVar("ReferenceConfig", bound=DpoConfig | KtoConfig)

# How far the reference's log-probability of a completion may be from the untrained model's, as a share of it:
# the same computation in other batches differs in its last bits only.
REFERENCE_TOLERANCE = {Precision.fp32: 1e-4, Precision.bf16: 1e-2, Precision.fp16: 1e-2}


class ReferenceCallback(RunDirCallback[ReferenceConfig]):
    """Also checks the reference, after the first step."""

    def __init__(
        self,
        config: ReferenceConfig,
        run_dir: Path,
        events: EventWriter,
        stop: StopFlag,
        precision: Precision,
    ) -> None:
        super().__init__(config, run_dir, events, stop)
        self._precision = precision

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().on_log(args, state, control, logs=logs, **kwargs)
        # The logs of a validation have no `loss`.
        if logs is not None and "loss" in logs and state.global_step == 1:
            check_reference(logs, self._config.beta, self._precision)


def check_reference(logs: dict[str, float], beta: float, precision: Precision) -> None:
    """Assert that the reference is the untrained model, given TRL's metrics of the first step.

    The rewards of step 1 are from before its update, so they must be zero.
    """
    for side in ("chosen", "rejected"):
        if f"rewards/{side}" not in logs:
            continue  # A step of KTO may have rows of one label only.
        difference = abs(logs[f"rewards/{side}"]) / beta
        allowed = REFERENCE_TOLERANCE[precision] * abs(logs[f"logps/{side}"])
        assert difference <= allowed + 1e-3, (
            f"The reference is not the untrained model: {side} completions differ by {difference} nats."
        )
