"""Reinforcement learning from rewards on the model's own answers, by TRL's GRPOTrainer.

Each step samples answers with transformers, judges them by the config's rewards and learns from how they
differ within a prompt's group. Some answers are kept in `samples.jsonl` with what each reward gave.
Resuming and stopping are as in sft: random state is part of a checkpoint, so the same answers are sampled.

    python -m trainers.grpo --config grpo.yaml --run-dir runs/rewarded
"""

import time
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerControl, TrainerState
from transformers import TrainingArguments as Arguments
from trl import GRPOConfig as TrlConfig
from trl import GRPOTrainer
from trl.import_utils import is_vllm_available

from trainers.configs.stages.grpo import GenerationBackend, GrpoConfig, GrpoLoss
from trainers.configs.training import FullTuning, Precision
from trainers.modeling.load import load_tokenizer, pick_device, pick_precision
from trainers.preflight.check import check_before_training, check_stage
from trainers.preflight.findings import findings_to_json
from trainers.rendering.render import PromptCompletion, tokenize_prompt
from trainers.runtime import run_dir as files
from trainers.runtime.errors import DeviceUnavailable
from trainers.runtime.events import EventWriter
from trainers.runtime.program import is_main_process, run_program, stop_after_step
from trainers.training.arguments import plan_training, total_steps, training_arguments
from trainers.training.callback import RunDirCallback
from trainers.training.loop import run_training_loop
from trainers.training.policy import cast_adapter_to_fp32, load_policy, new_adapter_config
from trainers.training.rollouts import RolloutRecorder, build_prompt_dataset, load_prompts
from trainers.training.save import save_model, training_result

SAMPLES = "samples.jsonl"


def train(config: GrpoConfig, run_dir: Path, report: EventWriter) -> dict[str, Any]:
    """Train, save `model/` and return the result; raises StopRequested after SIGTERM."""
    started = time.monotonic()
    precision = pick_precision(config.precision, pick_device(config.queue))
    tokenizer = load_tokenizer(config.base)
    prompts = load_prompts(config.dataset, config.rewards, tokenizer)
    check_before_training(config, tokenizer, prompts, run_dir, report)
    rollouts = RolloutRecorder(config.rewards, config.num_generations)
    model = load_policy(config, precision, report)
    with stop_after_step() as stop:
        trainer = _trainer(config, run_dir, model, tokenizer, prompts, rollouts, precision)
        passes = len(trainer.train_dataset) / len(prompts)
        callback = GrpoCallback(config, run_dir, report, stop, rollouts, passes)
        run_training_loop(trainer, config, callback, run_dir, stop, f"{len(prompts)} prompts")
        save_model(trainer, config, run_dir, tokenizer)
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    return training_result(
        config,
        tokenizer,
        trainer.state,
        first_reward=rewards[0],
        last_reward=rewards[-1],
        seconds=round(time.monotonic() - started, 3),
    )


def plan(config: GrpoConfig) -> dict[str, Any]:
    """The resolved numbers of a run, without training."""
    tokenizer = load_tokenizer(config.base)
    prompts = load_prompts(config.dataset, config.rewards, tokenizer)
    return {
        "stage": "grpo",
        "rows": len(prompts),
        "prompts_per_step": config.rows_per_step,
        **plan_training(
            config,
            total_steps(config, len(prompts), config.rows_per_step),
            _longest(config, prompts, tokenizer),
        ),
        "findings": findings_to_json(check_stage(config, tokenizer, prompts)),
    }


class GrpoCallback(RunDirCallback):
    """Also keeps samples and tells of useless rewards; one epoch here is `passes` over the rows."""

    def __init__(self, *args: Any) -> None:
        *shared, self._rollouts, self._passes = args
        super().__init__(*shared)
        self._told: set[str] = set()

    def on_log(
        self,
        args: Arguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is None or "loss" not in logs:
            return
        epoch = round(logs["epoch"] * self._passes, 4)
        super().on_log(args, state, control, logs=logs | {"epoch": epoch}, **kwargs)
        if is_main_process():
            samples = self._rollouts.samples(self._config.samples_per_log)
            files.append_lines(self._run_dir / SAMPLES, [{"step": state.global_step, **s} for s in samples])
        for name in set(self._rollouts.constant()) - self._told:
            self._told.add(name)
            self._report.warning(
                "reward_constant",
                f"By step {state.global_step} the reward {name!r} has given all answers to each prompt the "
                "same value for a while, so it teaches nothing. Choose prompts that the model solves "
                "sometimes, raise temperature or num_generations, or correct the reward.",
            )


def _trainer(
    config: GrpoConfig,
    run_dir: Path,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[PromptCompletion],
    rollouts: RolloutRecorder,
    precision: Precision,
) -> GRPOTrainer:
    per_step = config.rows_per_step
    steps = total_steps(config, len(prompts), per_step)
    longest = _longest(config, prompts, tokenizer)
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=list(rollouts.functions),
        args=TrlConfig(**_arguments(config, run_dir, precision, steps, longest, rollouts.weights)),
        train_dataset=build_prompt_dataset(prompts, steps * per_step, config.seed),
        processing_class=tokenizer,
        peft_config=new_adapter_config(config, model),
    )
    if config.beta and isinstance(config.tuning, FullTuning):
        # TRL loaded the reference from the path in the model's config, which need not be the model: an
        # adapter may have been merged into it.
        trainer.ref_model.load_state_dict(model.state_dict())
    return cast_adapter_to_fp32(trainer)


def _arguments(
    config: GrpoConfig,
    run_dir: Path,
    precision: Precision,
    steps: int,
    longest_tokens: int,
    weights: list[float],
) -> dict[str, Any]:
    return (
        training_arguments(config, run_dir, precision, steps, longest_tokens)
        | _generation(config)
        | {
            # TRL counts prompts and answers itself; the Trainer would not find its input.
            "include_num_input_tokens_seen": "no",
            "shuffle_dataset": False,
            "num_generations": config.num_generations,
            "max_completion_length": config.max_completion_length,
            "temperature": config.temperature,
            "loss_type": config.loss.value,
            # LUSPO's weights are defined for whole answers.
            "importance_sampling_level": "sequence" if config.loss is GrpoLoss.luspo else "token",
            "beta": config.beta,
            "scale_rewards": config.scale_rewards.value,
            "mask_truncated_completions": config.mask_truncated_completions,
            "reward_weights": weights,
        }
    )


def _generation(config: GrpoConfig) -> dict[str, Any]:
    """TRL's arguments of what generates; raises DeviceUnavailable where vLLM is not installed."""
    if config.generation is GenerationBackend.transformers:
        return {}
    if not is_vllm_available():
        raise DeviceUnavailable(
            f"generation is {config.generation}, for which this host lacks vLLM.",
            "Install the vllm that TRL names beside the trainers, or set generation to transformers.",
        )
    return {
        "use_vllm": True,
        "vllm_mode": "server" if config.generation is GenerationBackend.vllm_server else "colocate",
        "vllm_server_base_url": config.vllm_server_url,
        "vllm_gpu_memory_utilization": config.vllm_memory_share,
    }


def _longest(config: GrpoConfig, prompts: list[PromptCompletion], tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of the longest prompt with the longest answer that is allowed."""
    return max(len(tokenize_prompt(pair, tokenizer)) for pair in prompts) + config.max_completion_length


if __name__ == "__main__":
    run_program(GrpoConfig, train, plan)
