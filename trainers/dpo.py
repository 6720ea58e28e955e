"""Direct preference optimization (DPO) with LoRA or of all weights, by TRL's DPOTrainer.

The reference is the model before the first step. With a new adapter, the reference is the base with the
adapter switched off; with an adapter that is trained further, a second, frozen copy of it; with full tuning,
a second copy of the model, unless the reference's log-probabilities are computed before training. Resuming
and stopping are as in `trainers.sft`.

    python -m trainers.dpo --config dpo.yaml --run-dir runs/preferred
"""

import os
import shutil
import time
from pathlib import Path
from typing import Any

from datasets import Dataset, disable_progress_bars, load_from_disk
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerControl, TrainerState
from transformers import TrainingArguments as Arguments
from trl import DPOConfig as TrlConfig
from trl import DPOTrainer

from trainers.configs.stages.dpo import DpoConfig
from trainers.configs.training import FullTuning, Precision
from trainers.modeling.load import load_tokenizer, pick_device, pick_precision
from trainers.modeling.quantization.record import add_quantized_base
from trainers.preflight.check import check_stage
from trainers.preflight.findings import findings_to_json
from trainers.preflight.start.before_training import check_before_training
from trainers.rendering.cache.folder import RowCache, cache_of_process
from trainers.rendering.examples.preferences import TRIPLE, PreferenceSet, load_preferences
from trainers.runtime import run_dir as files
from trainers.runtime.events import EventWriter
from trainers.runtime.program import is_main_process, run_program, stop_after_step
from trainers.training.arguments import plan_training, total_steps, training_arguments, validation_arguments
from trainers.training.callback import wait_for_all
from trainers.training.checkpoints.sharded_trainer import ShardedCheckpointMixin
from trainers.training.datasets import map_dataset
from trainers.training.loop import run_training_loop
from trainers.training.pair_weights import PairWeightMixin
from trainers.training.policy import cast_adapter_to_fp32, load_policy, new_adapter_config
from trainers.training.preferences.chosen_completions import warn_of_unlikely_chosen
from trainers.training.preferences.reference import ReferenceCallback
from trainers.training.samplers import StepSampler, StepSamplerMixin
from trainers.training.save import add_validation_callback, save_model, training_result
from trainers.training.schedule import ScheduleMixin
from trainers.training.validation import IsolatedValidationMixin

PAIRS = "pairs"


def run(config: DpoConfig, run_dir: Path, events: EventWriter) -> dict[str, Any]:
    """Train, publish `model/` and return the result; raises StopRequested after SIGTERM."""
    started = time.monotonic()
    disable_progress_bars()
    os.environ["TQDM_DISABLE"] = "1"  # The only switch of TRL's own progress bar.
    precision = pick_precision(config.precision, pick_device(config.queue))
    tokenizer = load_tokenizer(config.base, config.template)
    cache = cache_of_process(run_dir)
    preferences = load_preferences(config.dataset, tokenizer, config.max_length, cache=cache)
    check_before_training(config, tokenizer, preferences, run_dir, events)
    model = load_policy(config, precision, run_dir, events)
    with stop_after_step() as stop:
        trainer = _build_trainer(config, run_dir, model, tokenizer, preferences, precision, cache)
        callback = DpoCallback(config, run_dir, events, stop, precision)
        add_validation_callback(trainer, config, run_dir, tokenizer)
        run_training_loop(trainer, config, callback, run_dir, stop, preferences.summary())
        save_model(trainer, config, run_dir, tokenizer)
    if is_main_process():
        shutil.rmtree(run_dir / PAIRS, ignore_errors=True)
    last = next(entry for entry in reversed(trainer.state.log_history) if "rewards/margins" in entry)
    result = training_result(
        config,
        tokenizer,
        trainer.state,
        margin=last["rewards/margins"],
        accuracy=last["rewards/accuracies"],
        seconds=round(time.monotonic() - started, 3),
    )
    return add_quantized_base(result, run_dir)


def plan(config: DpoConfig) -> dict[str, Any]:
    """Return the resolved plan of a run, without training."""
    tokenizer = load_tokenizer(config.base, config.template)
    preferences = load_preferences(config.dataset, tokenizer, config.max_length)
    steps = total_steps(config, preferences.count, config.batch_size)
    return {
        "stage": "dpo",
        **preferences.counts(),
        **plan_training(config, steps, int(preferences.lengths.max())),
        "findings": findings_to_json(check_stage(config, tokenizer, preferences)),
    }


class PairTrainer(
    PairWeightMixin,
    StepSamplerMixin,
    ScheduleMixin,
    ShardedCheckpointMixin,
    IsolatedValidationMixin,
    DPOTrainer,
):
    """TRL's trainer on pairs that are already tokenized, so that DPO trains on the same tokens as SFT."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset


class DpoCallback(ReferenceCallback[DpoConfig]):
    """Also warns if the chosen completions become less likely."""

    def on_log(
        self,
        args: Arguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().on_log(args, state, control, logs=logs, **kwargs)
        if logs is not None and "rewards/margins" in logs:
            warn_of_unlikely_chosen(self._config, self._events, state.global_step, state.log_history)


def _build_trainer(
    config: DpoConfig,
    run_dir: Path,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    preferences: PreferenceSet,
    precision: Precision,
    cache: RowCache | None = None,
) -> PairTrainer:
    steps = total_steps(config, preferences.count, config.batch_size)
    arguments = TrlConfig(
        **training_arguments(config, run_dir, precision, steps, int(preferences.lengths.max())),
        **validation_arguments(config, steps),
        logging_first_step=True,
        max_length=config.max_length,
        loss_type=[loss.value for loss in config.losses],
        loss_weights=list(config.losses.values()),
        beta=config.beta,
        label_smoothing=config.label_smoothing,
        precompute_ref_log_probs=config.precompute_reference,
    )
    # Without a reference, TRL loads one from the path in the model's config, which need not be this model: an
    # adapter may have been merged into it.
    needs_copy = isinstance(config.tuning, FullTuning) and not config.precompute_reference
    trainer = PairTrainer(
        model=model,
        ref_model=load_policy(config, precision, run_dir, EventWriter(None)) if needs_copy else None,
        args=arguments,
        train_dataset=_build_dataset(config, run_dir, preferences),
        eval_dataset=_load_validation_dataset(config, tokenizer, cache),
        processing_class=tokenizer,
        peft_config=new_adapter_config(config, model),
    )
    trainer.step_sampler = StepSampler(preferences.lengths, config.batch_size, config.seed)
    return cast_adapter_to_fp32(trainer)


def _load_validation_dataset(
    config: DpoConfig, tokenizer: PreTrainedTokenizerBase, cache: RowCache | None
) -> Dataset | None:
    if config.validation_dataset is None:
        return None
    pairs = load_preferences(
        config.validation_dataset, tokenizer, config.max_length, config.max_validation_rows, cache
    )
    return map_dataset(pairs.mapped, TRIPLE, pairs.trained)


def _build_dataset(config: DpoConfig, run_dir: Path, preferences: PreferenceSet) -> Dataset:
    """Return the pairs; to precompute the reference, from a folder of the run directory.

    TRL caches the reference's log-probabilities next to the dataset. For a dataset in memory that is the
    machine's temporary folder, and a restarted run would compute them again.
    """
    dataset = map_dataset(preferences.mapped, TRIPLE, preferences.trained)
    if not config.precompute_reference:
        return dataset
    if is_main_process() and not (run_dir / PAIRS).exists():
        files.publish_folder(run_dir / PAIRS, lambda folder: dataset.save_to_disk(str(folder)))
    wait_for_all()
    return load_from_disk(str(run_dir / PAIRS))


if __name__ == "__main__":
    run_program(DpoConfig, run, plan)
