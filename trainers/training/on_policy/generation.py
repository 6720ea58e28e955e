"""What the stages share that train on completions of the model itself: generation, samples and epochs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from transformers import TrainerControl, TrainerState
from transformers import TrainingArguments as Arguments

from trainers.configs.on_policy import OnPolicyConfig
from trainers.rendering.examples.prompts import PromptSet
from trainers.runtime import run_dir as files
from trainers.runtime.events import EventWriter
from trainers.runtime.program import StopFlag, is_main_process
from trainers.training.callback import RunDirCallback
from trainers.training.validation import EVAL_LOSS

TOnPolicy = TypeVar("TOnPolicy", bound=OnPolicyConfig)


class OnPolicyCallback(RunDirCallback[TOnPolicy]):
    """Also writes samples.

    The Trainer's dataset contains all epochs, so its `epoch` is a share of the run and is multiplied by
    `epochs`. `samples` returns the first completions of the last batch.
    """

    def __init__(
        self,
        config: TOnPolicy,
        run_dir: Path,
        events: EventWriter,
        stop: StopFlag,
        samples: Callable[[int], list[dict[str, Any]]],
        epochs: float,
    ) -> None:
        super().__init__(config, run_dir, events, stop)
        self._samples = samples
        self._epochs = epochs

    def on_log(
        self,
        args: Arguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is None or not {"loss", EVAL_LOSS} & logs.keys():
            return
        epoch = round(logs["epoch"] * self._epochs, 4)
        super().on_log(args, state, control, logs=logs | {"epoch": epoch}, **kwargs)
        if is_main_process() and "loss" in logs:
            samples = self._samples(self._config.samples_per_log)
            files.append_lines(
                self._run_dir / files.SAMPLES, [{"step": state.global_step, **s} for s in samples]
            )


def generation_arguments(config: OnPolicyConfig) -> dict[str, Any]:
    """Return TRL's arguments of generation."""
    return {
        # TRL counts the tokens of prompts and completions itself; the Trainer would find no `input_ids`.
        "include_num_input_tokens_seen": "no",
        "shuffle_dataset": False,
        "max_completion_length": config.max_completion_length,
        "temperature": config.temperature,
    }


def longest_sequence(config: OnPolicyConfig, prompts: PromptSet) -> int:
    """Return the tokens of the longest prompt with a completion of the maximum length."""
    return int(prompts.lengths.max()) + config.max_completion_length
