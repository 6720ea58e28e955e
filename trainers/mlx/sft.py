"""Supervised fine-tuning (SFT) with MLX, on a Mac: LoRA, DoRA or all weights.

Rows, masks, schedule, files and resuming are as in `trainers.sft`. The published adapter is in PEFT's format.

    python -m trainers.mlx.sft --config sft.yaml --run-dir runs/first
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
from datasets import disable_progress_bars
from transformers import PreTrainedTokenizerBase

from trainers.configs.stages.sft import SftConfig
from trainers.mlx.training.batches import completion_batches
from trainers.mlx.training.losses import completion_loss
from trainers.mlx.training.plan import plan_mlx_training, with_mlx
from trainers.mlx.training.stage import StageRows, load_stage_network, train_stage
from trainers.modeling.load import load_tokenizer
from trainers.modeling.quantization.record import add_quantized_base
from trainers.preflight.check import check_stage
from trainers.preflight.findings import findings_to_json
from trainers.preflight.start.before_training import check_before_training
from trainers.rendering.cache.folder import RowCache, cache_of_process
from trainers.rendering.examples.sft import ExampleSet, load_examples
from trainers.runtime.events import EventWriter
from trainers.runtime.program import run_program
from trainers.training.arguments import total_steps
from trainers.training.save import training_result


def run(config: SftConfig, run_dir: Path, events: EventWriter) -> dict[str, Any]:
    """Train, publish `model/` and return the result; raises StopRequested after SIGTERM."""
    started = time.monotonic()
    disable_progress_bars()
    config = with_mlx(config)
    tokenizer = load_tokenizer(config.base, config.template)
    cache = cache_of_process(run_dir)
    examples = load_examples(config.dataset, tokenizer, config.max_length, cache=cache)
    check_before_training(config, tokenizer, examples, run_dir, events)
    validation = _load_validation(config, tokenizer, cache)
    model = load_stage_network(config, events, examples, validation)
    state = train_stage(
        config,
        run_dir,
        events,
        tokenizer,
        model,
        make_rows(examples),
        None if validation is None else make_rows(validation),
        completion_loss,
        examples.summary(),
    )
    result = training_result(config, tokenizer, state, seconds=round(time.monotonic() - started, 3))
    return add_quantized_base(result, run_dir)


def plan(config: SftConfig) -> dict[str, Any]:
    """Return the resolved plan of a run, without training."""
    config = with_mlx(config)
    tokenizer = load_tokenizer(config.base, config.template)
    examples = load_examples(config.dataset, tokenizer, config.max_length)
    steps = total_steps(config, examples.count, config.batch_size)
    return {
        "stage": "sft",
        **examples.counts(),
        **plan_mlx_training(config, steps, int(examples.lengths.max())),
        "findings": findings_to_json(check_stage(config, tokenizer, examples)),
    }


def make_rows(examples: ExampleSet) -> StageRows:
    """Return the rows that are trained, with the token ids and loss masks of the torch program."""
    indices = np.flatnonzero(examples.trained)
    return StageRows(examples.lengths, completion_batches(examples.mapped, indices))


def _load_validation(
    config: SftConfig, tokenizer: PreTrainedTokenizerBase, cache: RowCache
) -> ExampleSet | None:
    if config.validation_dataset is None:
        return None
    rows, count = config.validation_dataset, config.max_validation_rows
    return load_examples(rows, tokenizer, config.max_length, count, cache)


if __name__ == "__main__":
    run_program(SftConfig, run, plan)
