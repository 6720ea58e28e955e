"""Direct preference optimization (DPO) with MLX, on a Mac: LoRA, DoRA or all weights.

Pairs, losses, metrics, files and resuming are as in `trainers.dpo`. The reference is the model before the
first step; its log-probabilities are computed before training, so no second model is kept in memory.

    python -m trainers.mlx.dpo --config dpo.yaml --run-dir runs/preferred
"""

import time
from pathlib import Path
from typing import Any

import mlx.nn as nn
from datasets import disable_progress_bars
from transformers import PreTrainedTokenizerBase, TrainerState

from trainers.configs.stages.dpo import DpoConfig
from trainers.mlx.network import pick_mlx_precision
from trainers.mlx.training.plan import plan_mlx_training, with_mlx
from trainers.mlx.training.preferences import (
    PairRows,
    preference_batches,
    preference_loss,
    reference_logps,
)
from trainers.mlx.training.stage import StageRows, load_stage_network, train_stage
from trainers.modeling.load import load_tokenizer
from trainers.modeling.quantization.record import add_quantized_base
from trainers.preflight.check import check_stage
from trainers.preflight.findings import findings_to_json
from trainers.preflight.start.before_training import check_before_training
from trainers.rendering.cache.folder import RowCache, cache_of_process
from trainers.rendering.examples.preferences import PreferenceSet, load_preferences
from trainers.runtime.events import EventWriter
from trainers.runtime.program import run_program
from trainers.training.arguments import total_steps
from trainers.training.preferences.chosen_completions import warn_of_unlikely_chosen
from trainers.training.preferences.reference import check_reference
from trainers.training.save import training_result

# The reference's log-probabilities, kept for a later attempt.
REFERENCE, VALIDATION_REFERENCE = "reference-logps.npy", "validation-reference-logps.npy"


def run(config: DpoConfig, run_dir: Path, events: EventWriter) -> dict[str, Any]:
    """Train, publish `model/` and return the result; raises StopRequested after SIGTERM."""
    started = time.monotonic()
    disable_progress_bars()
    config = _with_precomputed_reference(config)
    tokenizer = load_tokenizer(config.base, config.template)
    cache = cache_of_process(run_dir)
    preferences = load_preferences(config.dataset, tokenizer, config.max_length, cache=cache)
    check_before_training(config, tokenizer, preferences, run_dir, events)
    held_out = _load_validation(config, tokenizer, cache)
    model = load_stage_network(config, events, preferences, held_out)
    rows = _make_rows(config, preferences, model.network, run_dir / REFERENCE)
    validation = None
    if held_out is not None:
        validation = _make_rows(config, held_out, model.network, run_dir / VALIDATION_REFERENCE)

    def on_log(state: TrainerState) -> None:
        if state.global_step == 1:
            check_reference(state.log_history[-1], config.beta, pick_mlx_precision(config))
        warn_of_unlikely_chosen(config, events, state.global_step, state.log_history)

    state = train_stage(
        config,
        run_dir,
        events,
        tokenizer,
        model,
        rows,
        validation,
        preference_loss(config.losses, config.beta),
        preferences.summary(),
        on_log=on_log,
    )
    for name in (REFERENCE, VALIDATION_REFERENCE):
        (run_dir / name).unlink(missing_ok=True)
    last = next(entry for entry in reversed(state.log_history) if "rewards/margins" in entry)
    result = training_result(
        config,
        tokenizer,
        state,
        margin=last["rewards/margins"],
        accuracy=last["rewards/accuracies"],
        seconds=round(time.monotonic() - started, 3),
    )
    return add_quantized_base(result, run_dir)


def plan(config: DpoConfig) -> dict[str, Any]:
    """Return the resolved plan of a run, without training."""
    config = _with_precomputed_reference(config)
    tokenizer = load_tokenizer(config.base, config.template)
    preferences = load_preferences(config.dataset, tokenizer, config.max_length)
    steps = total_steps(config, preferences.count, config.batch_size)
    return {
        "stage": "dpo",
        **preferences.counts(),
        **plan_mlx_training(config, steps, int(preferences.lengths.max())),
        "findings": findings_to_json(check_stage(config, tokenizer, preferences)),
    }


def _with_precomputed_reference(config: DpoConfig) -> DpoConfig:
    return with_mlx(config).model_copy(update={"precompute_reference": True})


def _make_rows(config: DpoConfig, preferences: PreferenceSet, network: nn.Module, file: Path) -> StageRows:
    """Return the pairs with the log-probabilities of the network, which must be untrained."""
    assert config.micro_batch_size is not None
    pairs = PairRows(preferences)
    reference = reference_logps(network, pairs, config.micro_batch_size, file)
    return StageRows(pairs.longest, preference_batches(pairs, reference))


def _load_validation(
    config: DpoConfig, tokenizer: PreTrainedTokenizerBase, cache: RowCache
) -> PreferenceSet | None:
    if config.validation_dataset is None:
        return None
    rows, count = config.validation_dataset, config.max_validation_rows
    return load_preferences(rows, tokenizer, config.max_length, count, cache)


if __name__ == "__main__":
    run_program(DpoConfig, run, plan)
