"""Supervised fine-tuning (SFT) with LoRA or of all weights, by TRL's SFTTrainer.

The same command on the same run directory resumes from the last complete checkpoint, with optimizer,
schedule, random state and data position. SIGTERM saves a checkpoint after the current step and exits 75.

    python -m trainers.sft --config sft.yaml --run-dir runs/first
"""

import logging
import time
from pathlib import Path
from typing import Any

from datasets import Dataset, disable_progress_bars
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig as TrlConfig
from trl import SFTTrainer

from trainers.configs.stages.sft import SftConfig
from trainers.configs.training import Precision
from trainers.modeling.load import load_tokenizer, pick_device, pick_precision
from trainers.modeling.quantization.record import add_quantized_base
from trainers.preflight.check import check_stage, model_config
from trainers.preflight.findings import findings_to_json
from trainers.preflight.start.before_training import check_before_training
from trainers.rendering.cache.folder import RowCache, cache_of_process
from trainers.rendering.cache.mapped import Int32s
from trainers.rendering.examples.sft import ExampleSet, load_examples
from trainers.runtime.events import EventWriter
from trainers.runtime.program import run_program, stop_after_step
from trainers.training.arguments import plan_training, total_steps, training_arguments, validation_arguments
from trainers.training.callback import RunDirCallback
from trainers.training.checkpoints.sharded_trainer import ShardedCheckpointMixin
from trainers.training.datasets import map_dataset, pack_rows, token_lengths
from trainers.training.loop import run_training_loop
from trainers.training.padding_free import enable_padding_free, project_loss_tokens_only, uses_padding_free
from trainers.training.policy import cast_adapter_to_fp32, load_policy, new_adapter_config
from trainers.training.samplers import StepSampler, StepSamplerMixin
from trainers.training.save import add_validation_callback, save_model, training_result
from trainers.training.schedule import ScheduleMixin
from trainers.training.validation import IsolatedValidationMixin

COLUMNS = ("input_ids", "labels")

logger = logging.getLogger("trainers")


def run(config: SftConfig, run_dir: Path, events: EventWriter) -> dict[str, Any]:
    """Train, publish `model/` and return the result; raises StopRequested after SIGTERM."""
    started = time.monotonic()
    disable_progress_bars()
    precision = pick_precision(config.precision, pick_device(config.queue))
    tokenizer = load_tokenizer(config.base, config.template)
    cache = cache_of_process(run_dir)
    examples = load_examples(config.dataset, tokenizer, config.max_length, cache=cache)
    check_before_training(config, tokenizer, examples, run_dir, events)
    model = load_policy(config, precision, run_dir, events)
    with stop_after_step() as stop:
        trainer = _build_trainer(config, run_dir, model, tokenizer, examples, precision, cache)
        callback = RunDirCallback(config, run_dir, events, stop)
        add_validation_callback(trainer, config, run_dir, tokenizer)
        run_training_loop(trainer, config, callback, run_dir, stop, examples.summary())
        save_model(trainer, config, run_dir, tokenizer)
    seconds = round(time.monotonic() - started, 3)
    result = training_result(config, tokenizer, trainer.state, seconds=seconds)
    return add_quantized_base(result, run_dir)


def plan(config: SftConfig) -> dict[str, Any]:
    """Return the resolved plan of a run, without training."""
    tokenizer = load_tokenizer(config.base, config.template)
    examples = load_examples(config.dataset, tokenizer, config.max_length)
    dataset = _build_dataset(config, examples, None)
    longest = int(token_lengths(dataset).max())
    return {
        "stage": "sft",
        **examples.counts(),
        "padding_free": uses_padding_free(config, model_config(config)),
        **plan_training(config, total_steps(config, len(dataset), config.batch_size), longest),
        "findings": findings_to_json(check_stage(config, tokenizer, examples)),
    }


class RowTrainer(
    StepSamplerMixin, ScheduleMixin, ShardedCheckpointMixin, IsolatedValidationMixin, SFTTrainer
):
    """TRL's trainer on rows that are already tokenized, in our own order."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        """Return TRL's loss; on a CPU, without projecting tokens that carry no loss."""
        if self.args.device.type != "cpu":
            return super().compute_loss(model, inputs, *arguments, **options)
        with project_loss_tokens_only(self.accelerator.unwrap_model(model), inputs) as reduced:
            return super().compute_loss(model, reduced, *arguments, **options)


def _build_trainer(
    config: SftConfig,
    run_dir: Path,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: ExampleSet,
    precision: Precision,
    cache: RowCache,
) -> SFTTrainer:
    dataset = _build_dataset(config, examples, cache)
    lengths = token_lengths(dataset)
    is_padding_free = enable_padding_free(config, model)
    logger.info(
        "The rows of a micro-batch are concatenated without padding."
        if is_padding_free
        else "The rows of a micro-batch have similar lengths and are padded to the longest."
    )
    trainer = RowTrainer(
        model=model,
        args=TrlConfig(**_build_arguments(config, run_dir, precision, lengths, is_padding_free)),
        train_dataset=dataset,
        eval_dataset=_load_validation_dataset(config, tokenizer, cache),
        processing_class=tokenizer,
        peft_config=new_adapter_config(config, model),
    )
    # Multimodal classes decline the number of a step's tokens, since their own forward pass does not use it.
    # TRL's does; without it, the loss would be a mean of means, which depends on the micro-batches.
    trainer.model_accepts_loss_kwargs = True
    trainer.step_sampler = StepSampler(lengths, config.batch_size, config.seed)
    return cast_adapter_to_fp32(trainer)


def _build_arguments(
    config: SftConfig, run_dir: Path, precision: Precision, lengths: Int32s, is_padding_free: bool
) -> dict[str, Any]:
    steps = total_steps(config, len(lengths), config.batch_size)
    longest = int(lengths.max())
    return {
        **training_arguments(config, run_dir, precision, steps, longest),
        **validation_arguments(config, steps),
        # The rows are already truncated, and TRL refuses padding-free batches that it may have to truncate.
        "max_length": None,
        "padding_free": is_padding_free,
        # Counting "non_padding" would miss the end-of-turn tokens of a model that pads with that token.
        "include_num_input_tokens_seen": "all" if is_padding_free else "non_padding",
        "completion_only_loss": True,
        # TRL's own loss computes the logits of a few tokens at a time, so no fused kernel is needed.
        "loss_type": "nll",
        "packing": config.packing,
        "neftune_noise_alpha": config.neftune_alpha,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }


def _build_dataset(config: SftConfig, examples: ExampleSet, cache: RowCache | None) -> Dataset:
    """Return the rows, or sequences packed from them."""
    dataset = map_dataset(examples.mapped, COLUMNS, examples.trained)
    return pack_rows(dataset, examples.mapped, config.max_length, cache) if config.packing else dataset


def _load_validation_dataset(
    config: SftConfig, tokenizer: PreTrainedTokenizerBase, cache: RowCache
) -> Dataset | None:
    if config.validation_dataset is None:
        return None
    examples = load_examples(
        config.validation_dataset, tokenizer, config.max_length, config.max_validation_rows, cache
    )
    return map_dataset(examples.mapped, COLUMNS, examples.trained)


if __name__ == "__main__":
    run_program(SftConfig, run, plan)
