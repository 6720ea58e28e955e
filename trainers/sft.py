"""Supervised fine-tuning with LoRA or of all weights, by TRL's SFTTrainer.

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
from trl import SFTTrainer, pack_dataset

from trainers.configs.stages.sft import SftConfig
from trainers.configs.training import Precision
from trainers.modeling.load import load_tokenizer, pick_device, pick_precision
from trainers.preflight.check import check_before_training, check_stage, model_config
from trainers.preflight.findings import findings_to_json
from trainers.rendering.sft_examples import ExampleSet, load_examples
from trainers.runtime.events import EventWriter
from trainers.runtime.program import run_program, stop_after_step
from trainers.training.arguments import plan_training, total_steps, training_arguments, validation_arguments
from trainers.training.callback import RunDirCallback
from trainers.training.loop import run_training_loop
from trainers.training.padding_free import enable_padding_free, project_loss_tokens_only, uses_padding_free
from trainers.training.policy import cast_adapter_to_fp32, load_policy, new_adapter_config
from trainers.training.samplers import StepSampler, StepSamplerMixin
from trainers.training.save import add_validation_callback, save_model, training_result
from trainers.training.validation import IsolatedValidationMixin

logger = logging.getLogger("trainers")


def train(config: SftConfig, run_dir: Path, report: EventWriter) -> dict[str, Any]:
    """Train, save `model/` and return the result; raises StopRequested after SIGTERM."""
    started = time.monotonic()
    disable_progress_bars()
    precision = pick_precision(config.precision, pick_device(config.queue))
    tokenizer = load_tokenizer(config.base)
    examples = load_examples(config.dataset, tokenizer, config.max_length)
    check_before_training(config, tokenizer, examples, run_dir, report)
    model = load_policy(config, precision, report)
    with stop_after_step() as stop:
        trainer = _trainer(config, run_dir, model, tokenizer, examples, precision)
        callback = RunDirCallback(config, run_dir, report, stop)
        add_validation_callback(trainer, config, run_dir, tokenizer)
        run_training_loop(trainer, config, callback, run_dir, stop, examples.summary())
        save_model(trainer, config, run_dir, tokenizer)
    seconds = round(time.monotonic() - started, 3)
    return training_result(config, tokenizer, trainer.state, seconds=seconds)


def plan(config: SftConfig) -> dict[str, Any]:
    """The resolved numbers of a run, without training."""
    tokenizer = load_tokenizer(config.base)
    examples = load_examples(config.dataset, tokenizer, config.max_length)
    dataset = _dataset(config, examples)
    return {
        "stage": "sft",
        "rows": examples.rows,
        "examples": len(examples.examples),
        "truncated": examples.truncated,
        "dropped": examples.dropped,
        "tokens": examples.tokens,
        "loss_tokens": examples.loss_tokens,
        "padding_free": uses_padding_free(config, model_config(config)),
        **plan_training(
            config, total_steps(config, len(dataset), config.batch_size), max(map(len, dataset["input_ids"]))
        ),
        "findings": findings_to_json(check_stage(config, tokenizer, examples)),
    }


class RowTrainer(StepSamplerMixin, IsolatedValidationMixin, SFTTrainer):
    """TRL's trainer on rows that are tokens already, in our own order."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        """TRL's loss, without the head's work on tokens that carry none."""
        if self.args.device.type != "cpu":
            return super().compute_loss(model, inputs, *arguments, **options)
        with project_loss_tokens_only(self.accelerator.unwrap_model(model), inputs) as less:
            return super().compute_loss(model, less, *arguments, **options)


def _trainer(
    config: SftConfig,
    run_dir: Path,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: ExampleSet,
    precision: Precision,
) -> SFTTrainer:
    dataset = _dataset(config, examples)
    is_flat = enable_padding_free(config, model)
    logger.info(
        "Rows are laid end to end, without padding."
        if is_flat
        else "Rows of like length share a forward pass and are padded to its longest."
    )
    trainer = RowTrainer(
        model=model,
        args=TrlConfig(**_arguments(config, run_dir, precision, dataset, is_flat)),
        train_dataset=dataset,
        eval_dataset=_validation_dataset(config, tokenizer),
        processing_class=tokenizer,
        peft_config=new_adapter_config(config, model),
    )
    trainer.step_order = StepSampler(list(map(len, dataset["input_ids"])), config.batch_size, config.seed)
    return cast_adapter_to_fp32(trainer)


def _arguments(
    config: SftConfig, run_dir: Path, precision: Precision, dataset: Dataset, is_flat: bool
) -> dict[str, Any]:
    steps = total_steps(config, len(dataset), config.batch_size)
    longest = max(map(len, dataset["input_ids"]))
    return {
        **training_arguments(config, run_dir, precision, steps, longest),
        **validation_arguments(config),
        # Rows are cut already, and TRL refuses to leave padding out where it might have to cut.
        "max_length": None,
        "padding_free": is_flat,
        # Without padding, its token is one that ends turns, where the model has no other to pad with.
        "include_num_input_tokens_seen": "all" if is_flat else "non_padding",
        "completion_only_loss": True,
        # TRL's loss holds the logits of a few tokens at once, so no other kernel is needed.
        "loss_type": "nll",
        "packing": config.packing,
        "neftune_noise_alpha": config.neftune_alpha,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }


def _dataset(config: SftConfig, examples: ExampleSet) -> Dataset:
    """The rows, or the sequences into which they are packed by best fit decreasing (arXiv:2404.10830)."""
    dataset = _rows(examples)
    return pack_dataset(dataset, config.max_length, strategy="bfd") if config.packing else dataset


def _validation_dataset(config: SftConfig, tokenizer: PreTrainedTokenizerBase) -> Dataset | None:
    if config.validation_dataset is None:
        return None
    return _rows(
        load_examples(config.validation_dataset, tokenizer, config.max_length, config.max_validation_rows)
    )


def _rows(examples: ExampleSet) -> Dataset:
    return Dataset.from_list(
        [{"input_ids": example.input_ids, "labels": example.labels} for example in examples.examples]
    )


if __name__ == "__main__":
    run_program(SftConfig, train, plan)
