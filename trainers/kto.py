"""Kahneman-Tversky optimization (KTO) with LoRA or of all weights, by TRL's KTOTrainer.

The reference is the model before the first step, as in `trainers.dpo`. The loss compares the reward of a
completion with an estimate of the KL divergence from the reference, the mean over completions of other
prompts. TRL estimates it from one micro-batch; here it is estimated once from all rows of a step, so that the
micro-batch does not change the objective. Resuming and stopping are as in `trainers.sft`.

    python -m trainers.kto --config kto.yaml --run-dir runs/labelled
"""

import time
from pathlib import Path
from typing import Any

from datasets import Dataset, disable_progress_bars
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerState
from trl import KTOConfig as TrlConfig

from trainers.configs.stages.kto import KtoConfig
from trainers.configs.training import FullTuning, Precision
from trainers.modeling.load import load_tokenizer, pick_device, pick_precision
from trainers.modeling.quantization.record import add_quantized_base
from trainers.preflight.check import check_stage
from trainers.preflight.findings import findings_to_json
from trainers.preflight.start.before_training import check_before_training
from trainers.rendering.cache.folder import RowCache, cache_of_process
from trainers.rendering.examples.labelled import RECORD, LabelledSet, load_labelled
from trainers.runtime.events import EventWriter
from trainers.runtime.program import run_program, stop_after_step
from trainers.training.arguments import plan_training, total_steps, training_arguments, validation_arguments
from trainers.training.datasets import map_dataset
from trainers.training.loop import run_training_loop
from trainers.training.policy import cast_adapter_to_fp32, load_policy, new_adapter_config
from trainers.training.preferences.labelled_trainer import (
    LabelledTrainer,
    MismatchSampler,
    RowsWithMismatch,
    ValidationRows,
)
from trainers.training.preferences.reference import ReferenceCallback
from trainers.training.save import add_validation_callback, save_model, training_result


def run(config: KtoConfig, run_dir: Path, events: EventWriter) -> dict[str, Any]:
    """Train, publish `model/` and return the result; raises StopRequested after SIGTERM."""
    started = time.monotonic()
    disable_progress_bars()
    precision = pick_precision(config.precision, pick_device(config.queue))
    tokenizer = load_tokenizer(config.base, config.template)
    cache = cache_of_process(run_dir)
    labelled = load_labelled(config.dataset, tokenizer, config.max_length, cache=cache)
    check_before_training(config, tokenizer, labelled, run_dir, events)
    model = load_policy(config, precision, run_dir, events)
    with stop_after_step() as stop:
        trainer = _build_trainer(config, run_dir, model, tokenizer, labelled, precision, cache)
        callback = ReferenceCallback(config, run_dir, events, stop, precision)
        add_validation_callback(trainer, config, run_dir, tokenizer)
        run_training_loop(trainer, config, callback, run_dir, stop, labelled.summary())
        save_model(trainer, config, run_dir, tokenizer)
    result = training_result(
        config,
        tokenizer,
        trainer.state,
        reward_good=_last(trainer.state, "rewards/chosen"),
        reward_bad=_last(trainer.state, "rewards/rejected"),
        seconds=round(time.monotonic() - started, 3),
    )
    return add_quantized_base(result, run_dir)


def plan(config: KtoConfig) -> dict[str, Any]:
    """Return the resolved plan of a run, without training."""
    tokenizer = load_tokenizer(config.base, config.template)
    labelled = load_labelled(config.dataset, tokenizer, config.max_length)
    steps = total_steps(config, labelled.count, config.batch_size)
    return {
        "stage": "kto",
        "rows": labelled.rows,
        "good": labelled.desirable,
        "bad": labelled.count - labelled.desirable,
        "truncated": labelled.truncated,
        "dropped": labelled.dropped,
        "tokens": labelled.tokens,
        **plan_training(config, steps, int(labelled.lengths.max())),
        "findings": findings_to_json(check_stage(config, tokenizer, labelled)),
    }


def _build_trainer(
    config: KtoConfig,
    run_dir: Path,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    labelled: LabelledSet,
    precision: Precision,
    cache: RowCache,
) -> LabelledTrainer:
    steps = total_steps(config, labelled.count, config.batch_size)
    arguments = TrlConfig(
        **training_arguments(config, run_dir, precision, steps, int(labelled.lengths.max())),
        **validation_arguments(config, steps),
        logging_first_step=True,
        # The rows are already truncated; completions of other prompts may make them longer again.
        max_length=config.max_length,
        beta=config.beta,
        desirable_weight=config.desirable_weight,
        undesirable_weight=config.undesirable_weight,
        # TRL refuses the loss `kto` with micro-batches of one row, from which it could not estimate the KL.
        loss_type="apo_zero_unpaired",
    )
    dataset = map_dataset(labelled.mapped, RECORD, labelled.trained)
    validation = _load_validation_dataset(config, tokenizer, cache)
    needs_copy = isinstance(config.tuning, FullTuning)
    trainer = LabelledTrainer(
        model=model,
        # Without a reference, TRL loads one from the path in the model's config: another model, perhaps.
        ref_model=load_policy(config, precision, run_dir, EventWriter(None)) if needs_copy else None,
        args=arguments,
        train_dataset=dataset,
        eval_dataset=validation,
        processing_class=tokenizer,
        peft_config=new_adapter_config(config, model),
    )
    trainer.set_loss(config.loss.value)
    trainer.train_dataset = RowsWithMismatch(dataset)
    if validation is not None:
        trainer.eval_dataset = ValidationRows(validation)
    trainer.step_sampler = MismatchSampler(labelled.lengths, config.batch_size, config.seed)
    return cast_adapter_to_fp32(trainer)


def _load_validation_dataset(
    config: KtoConfig, tokenizer: PreTrainedTokenizerBase, cache: RowCache
) -> Dataset | None:
    if config.validation_dataset is None:
        return None
    rows = load_labelled(
        config.validation_dataset, tokenizer, config.max_length, config.max_validation_rows, cache
    )
    return map_dataset(rows.mapped, RECORD, rows.trained)


def _last(state: TrainerState, name: str) -> float | None:
    return next((entry[name] for entry in reversed(state.log_history) if name in entry), None)


if __name__ == "__main__":
    run_program(KtoConfig, run, plan)
