"""Group relative policy optimization (GRPO) on the model's own completions, by TRL's GRPOTrainer.

Each step samples a group of completions for each prompt, scores them by the config's rewards, and trains on
the differences within a group. Some completions are written to `samples.jsonl` with their rewards. Resuming
and stopping are as in `trainers.sft`: a checkpoint contains the random state, so a resumed run samples the
same completions. With `generation: vllm`, the program starts vLLM, which samples from the adapter of each
step.

    python -m trainers.grpo --config grpo.yaml --run-dir runs/rewarded
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerControl, TrainerState
from transformers import TrainingArguments as Arguments
from trl import GRPOConfig as TrlConfig

from trainers.configs.references import get_base_model
from trainers.configs.rewards import list_reward_graders
from trainers.configs.stages.grpo import GrpoConfig, GrpoLoss
from trainers.configs.stages.preflight import HostMemory
from trainers.configs.training import FullTuning, Precision
from trainers.graders.grade import check_grader_host
from trainers.modeling.load import forward_dtype, load_tokenizer, pick_device, pick_precision
from trainers.modeling.quantization.record import add_quantized_base
from trainers.preflight.check import check_stage
from trainers.preflight.findings import findings_to_json
from trainers.preflight.memory.engine_share import explain_small_share
from trainers.preflight.memory.estimate import model_shape
from trainers.preflight.memory.host import local_host
from trainers.preflight.start.before_training import check_before_training
from trainers.rendering.cache.folder import cache_of_process
from trainers.rendering.examples.prompts import PromptSet
from trainers.runtime.errors import ConfigInvalid
from trainers.runtime.events import EventWriter
from trainers.runtime.program import StopFlag, is_main_process, run_program, stop_after_step
from trainers.training.arguments import plan_training, total_steps, training_arguments, validation_arguments
from trainers.training.loop import run_training_loop
from trainers.training.on_policy.engine_process import ChildEngineOptions, run_engine
from trainers.training.on_policy.engine_sampler import EngineSampler, open_sampler
from trainers.training.on_policy.generation import OnPolicyCallback, generation_arguments, longest_sequence
from trainers.training.on_policy.importance_ratios import describe_mismatch
from trainers.training.on_policy.prompt_trainer import EngineSampledTrainer, PromptTrainer
from trainers.training.on_policy.rollouts import RolloutRecorder, build_prompt_dataset, load_prompts
from trainers.training.policy import adapter_rank, cast_adapter_to_fp32, load_policy, new_adapter_config
from trainers.training.save import save_model, training_result

SAMPLER_MISMATCH = "sampler_mismatch"


def run(config: GrpoConfig, run_dir: Path, events: EventWriter) -> dict[str, Any]:
    """Train, publish `model/` and return the result; raises StopRequested after SIGTERM."""
    started = time.monotonic()
    precision = pick_precision(config.precision, pick_device(config.queue))
    tokenizer = load_tokenizer(config.base, config.template)
    for grader in list_reward_graders(config.rewards):
        check_grader_host(grader)
    prompts = load_prompts(config.dataset, config.rewards, tokenizer, cache_of_process(run_dir))
    check_before_training(config, tokenizer, prompts, run_dir, events)
    rollouts = RolloutRecorder(config.rewards, config.num_generations)
    validation = _load_validation_prompts(config, tokenizer, run_dir)
    with _run_sampler(config, run_dir, precision, [prompts, *filter(None, [validation])]) as sampler:
        model = load_policy(config, precision, run_dir, events)
        with stop_after_step() as stop:
            trainer = _build_trainer(
                config, run_dir, model, tokenizer, prompts, rollouts, precision, validation, sampler
            )
            epochs = len(trainer.train_dataset) / prompts.rows
            callback = GrpoCallback(config, run_dir, events, stop, rollouts, epochs, precision)
            run_training_loop(trainer, config, callback, run_dir, stop, f"{prompts.rows} prompts")
            save_model(trainer, config, run_dir, tokenizer)
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    result = training_result(
        config,
        tokenizer,
        trainer.state,
        first_reward=rewards[0],
        last_reward=rewards[-1],
        seconds=round(time.monotonic() - started, 3),
        **_count_graded(rollouts),
    )
    return add_quantized_base(result, run_dir)


def _count_graded(rollouts: RolloutRecorder) -> dict[str, float]:
    """Return what the graders have counted in this attempt."""
    counts = rollouts.grader_counts.values()
    if not counts:
        return {}
    return {
        "graded": sum(one.graded for one in counts),
        "grader_errors": sum(one.errors for one in counts),
        "grader_unsuitable": sum(one.unsuitable for one in counts),
    }


def plan(config: GrpoConfig) -> dict[str, Any]:
    """Return the resolved plan of a run, without training."""
    tokenizer = load_tokenizer(config.base, config.template)
    prompts = load_prompts(config.dataset, config.rewards, tokenizer)
    steps = total_steps(config, prompts.rows, config.rows_per_step)
    return {
        "stage": "grpo",
        "rows": prompts.rows,
        "prompts_per_step": config.rows_per_step,
        **plan_training(config, steps, longest_sequence(config, prompts)),
        "findings": findings_to_json(check_stage(config, tokenizer, prompts)),
    }


class GrpoCallback(OnPolicyCallback[GrpoConfig]):
    """Also warns of useless rewards, and of an engine that samples from another model."""

    loss_falls = False

    def __init__(
        self,
        config: GrpoConfig,
        run_dir: Path,
        events: EventWriter,
        stop: StopFlag,
        rollouts: RolloutRecorder,
        epochs: float,
        precision: Precision,
    ) -> None:
        super().__init__(config, run_dir, events, stop, rollouts.samples, epochs)
        self._rollouts = rollouts
        self._precision = precision
        self._warned: set[str] = set()

    def on_log(
        self,
        args: Arguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().on_log(args, state, control, logs=logs, **kwargs)
        mismatch = describe_mismatch(state.global_step, logs or {}, self._precision)
        if mismatch is not None and SAMPLER_MISMATCH not in self._warned:
            self._warned.add(SAMPLER_MISMATCH)
            self._events.write_warning(SAMPLER_MISMATCH, mismatch)
        for name, counts in self._rollouts.grader_counts.items():
            if counts.errors and f"{name} errors" not in self._warned:
                self._warned.add(f"{name} errors")
                self._events.write_warning(
                    "grader_failed",
                    f"By step {state.global_step} the reward {name!r} has no score for {counts.errors} of "
                    f"{counts.graded} completions, which have the lowest instead. The last reason: "
                    f"{counts.last_error}",
                )
        for name in set(self._rollouts.constant_rewards()) - self._warned:
            self._warned.add(name)
            self._events.write_warning(
                "reward_constant",
                f"By step {state.global_step} the reward {name!r} has long been equal for all completions of "
                "each prompt, so nothing is learned from it. Choose prompts that the model solves sometimes, "
                "raise temperature or num_generations, or correct the reward.",
            )


def _build_trainer(
    config: GrpoConfig,
    run_dir: Path,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptSet,
    rollouts: RolloutRecorder,
    precision: Precision,
    validation: PromptSet | None = None,
    sampler: EngineSampler | None = None,
) -> PromptTrainer:
    steps = total_steps(config, prompts.rows, config.rows_per_step)
    longest = longest_sequence(config, prompts)
    build = PromptTrainer if sampler is None else partial(EngineSampledTrainer, sampler)
    trainer = build(
        model=model,
        reward_funcs=list(rollouts.functions),
        args=TrlConfig(**_build_arguments(config, run_dir, precision, steps, longest, rollouts.weights)),
        train_dataset=build_prompt_dataset(prompts, steps * config.rows_per_step, config.seed),
        eval_dataset=_build_validation_dataset(config, validation),
        processing_class=tokenizer,
        peft_config=new_adapter_config(config, model),
    )
    trainer.rollouts = rollouts
    if config.beta and isinstance(config.tuning, FullTuning):
        # TRL loaded the reference from the path in the model's config, which need not be this model: an
        # adapter may have been merged into it.
        trainer.ref_model.load_state_dict(model.state_dict())
    cast_adapter_to_fp32(trainer)
    if sampler is not None:
        sampler.bind(trainer)
    return trainer


def _load_validation_prompts(
    config: GrpoConfig, tokenizer: PreTrainedTokenizerBase, run_dir: Path
) -> PromptSet | None:
    if config.validation_dataset is None:
        return None
    return load_prompts(config.validation_dataset, config.rewards, tokenizer, cache_of_process(run_dir))


def _build_validation_dataset(config: GrpoConfig, prompts: PromptSet | None) -> Dataset | None:
    if prompts is None:
        return None
    count = min(prompts.rows, config.max_validation_rows or prompts.rows)
    return build_prompt_dataset(prompts, count, config.seed)


@contextmanager
def _run_sampler(
    config: GrpoConfig, run_dir: Path, precision: Precision, prompts: list[PromptSet]
) -> Iterator[EngineSampler | None]:
    """Yield a sampler whose engine runs until the block ends; None if the trainer itself generates.

    The engine starts before the model is loaded: vLLM measures which part of a GPU's memory is free.
    """
    if (kind := config.generation.engine) is None:
        yield None
        return
    device = pick_device(config.queue).type
    if device == "cuda":
        check_engine_share(config, precision, local_host(config))
    settings = ChildEngineOptions(
        kind,
        config.engine_program or (),
        get_base_model(config.base),
        max(longest_sequence(config, one) for one in prompts),
        str(forward_dtype(precision)).removeprefix("torch."),
        adapter_rank(config),
        config.vllm_memory_share,
        device,
        config.engine_timeout_seconds,
    )
    with ExitStack() as stack:
        # On a CPU, one engine uses all cores.
        has_own = is_main_process() or device == "cuda"
        engine = stack.enter_context(run_engine(settings, run_dir)) if has_own else None
        yield stack.enter_context(open_sampler(engine, run_dir, config.seed, config.engine_timeout_seconds))


def check_engine_share(config: GrpoConfig, precision: Precision, host: HostMemory) -> None:
    """Refuse a share of a GPU's memory that does not hold the base: vLLM would fail at each start."""
    shape = model_shape(config.base, config.tuning)
    if shape and (fault := explain_small_share(config, shape, host, is_bf16=precision.has_16_bits)):
        raise ConfigInvalid(*fault)


def _build_arguments(
    config: GrpoConfig,
    run_dir: Path,
    precision: Precision,
    steps: int,
    longest_tokens: int,
    weights: list[float],
) -> dict[str, Any]:
    return (
        training_arguments(config, run_dir, precision, steps, longest_tokens)
        | generation_arguments(config)
        | validation_arguments(config, steps)
        | {
            "num_generations": config.num_generations,
            "num_generations_eval": 1,
            "loss_type": config.loss.value,
            # LUSPO defines its importance weights for whole completions.
            "importance_sampling_level": "sequence" if config.loss is GrpoLoss.luspo else "token",
            "beta": config.beta,
            "scale_rewards": config.scale_rewards.value,
            "mask_truncated_completions": config.mask_truncated_completions,
            "reward_weights": weights,
            # VESPO weights sequences itself, and takes the ratios of tokens.
            **({"vllm_importance_sampling_mode": "token_truncate"} if config.loss is GrpoLoss.vespo else {}),
        }
    )


if __name__ == "__main__":
    run_program(GrpoConfig, run, plan)
