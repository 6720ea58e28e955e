"""On-policy distillation with LoRA or of all weights, by TRL's DistillationTrainer.

Each step samples completions of the student, and trains it on the divergence between its distribution of each
next token and that of the teacher, which is frozen. Some completions are written to `samples.jsonl`. Resuming
and stopping are as in `trainers.sft`: a checkpoint contains the random state, so a resumed run samples the
same completions.

    python -m trainers.distill --config distill.yaml --run-dir runs/student
"""

import time
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import DistillationConfig as TrlConfig
from trl import DistillationTrainer

from trainers.configs.references import get_base_model
from trainers.configs.stages.distill import DistillConfig
from trainers.configs.training import Precision
from trainers.modeling.attention.choice import pick_attention
from trainers.modeling.load import (
    forward_dtype,
    load_config,
    load_tokenizer,
    pick_device,
    pick_precision,
)
from trainers.modeling.quantization.record import add_quantized_base
from trainers.modeling.teacher import check_teacher, load_teacher, teacher_name
from trainers.preflight.check import check_stage
from trainers.preflight.findings import findings_to_json
from trainers.preflight.start.before_training import check_before_training
from trainers.rendering.cache.folder import cache_of_process
from trainers.rendering.examples.prompts import PromptSet
from trainers.runtime.errors import ConfigInvalid
from trainers.runtime.events import EventWriter
from trainers.runtime.program import run_program, stop_after_step
from trainers.training.arguments import plan_training, total_steps, training_arguments
from trainers.training.checkpoints.sharded_trainer import ShardedCheckpointMixin
from trainers.training.loop import run_training_loop
from trainers.training.on_policy.generation import OnPolicyCallback, generation_arguments, longest_sequence
from trainers.training.on_policy.rollouts import build_prompt_dataset, load_student_prompts
from trainers.training.policy import cast_adapter_to_fp32, load_policy, new_adapter_config
from trainers.training.save import save_model, training_result
from trainers.training.schedule import ScheduleMixin


def run(config: DistillConfig, run_dir: Path, events: EventWriter) -> dict[str, Any]:
    """Train, publish `model/` and return the result; raises StopRequested after SIGTERM."""
    started = time.monotonic()
    precision = pick_precision(config.precision, pick_device(config.queue))
    tokenizer = load_tokenizer(config.base, config.template)
    prompts = load_student_prompts(config.dataset, tokenizer, cache_of_process(run_dir))
    _check_pair(config, tokenizer, prompts)
    check_before_training(config, tokenizer, prompts, run_dir, events)
    model = load_policy(config, precision, run_dir, events)
    with stop_after_step() as stop:
        trainer = _build_trainer(config, run_dir, model, tokenizer, prompts, precision)
        epochs = len(trainer.train_dataset) / prompts.rows
        callback = OnPolicyCallback(config, run_dir, events, stop, trainer.samples, epochs)
        run_training_loop(trainer, config, callback, run_dir, stop, f"{prompts.rows} prompts")
        save_model(trainer, config, run_dir, tokenizer)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    result = training_result(
        config,
        tokenizer,
        trainer.state,
        first_divergence=losses[0],
        last_divergence=losses[-1],
        seconds=round(time.monotonic() - started, 3),
    )
    return add_quantized_base(result, run_dir)


def plan(config: DistillConfig) -> dict[str, Any]:
    """Return the resolved plan of a run, without training."""
    tokenizer = load_tokenizer(config.base, config.template)
    prompts = load_student_prompts(config.dataset, tokenizer)
    _check_pair(config, tokenizer, prompts)
    steps = total_steps(config, prompts.rows, config.rows_per_step)
    return {
        "stage": "distill",
        "rows": prompts.rows,
        **plan_training(config, steps, longest_sequence(config, prompts)),
        "findings": findings_to_json(check_stage(config, tokenizer, prompts)),
    }


class StudentTrainer(ScheduleMixin, ShardedCheckpointMixin, DistillationTrainer):
    """TRL's trainer, which keeps the last completions that it has sampled."""

    _last_batch: tuple[list[Any], list[list[int]]] = ([], [])

    def samples(self, count: int) -> list[dict[str, Any]]:
        """Return the first completions of the last batch, with their prompts."""
        return [
            {"prompt": prompt, "completion": self._tokenizer.decode(ids, skip_special_tokens=True)}
            for prompt, ids in list(zip(*self._last_batch, strict=True))[:count]
        ]

    def _generate(self, prompts: list[Any]) -> Any:
        generated = super()._generate(prompts)
        self._last_batch = (prompts, generated[1])
        return generated


def _check_pair(config: DistillConfig, tokenizer: PreTrainedTokenizerBase, prompts: PromptSet) -> None:
    """Raise an error for a teacher from which nothing can be learned, whatever `preflight` says."""
    if config.teacher == config.base:
        raise ConfigInvalid(
            f"teacher and base are the same model, {teacher_name(config.teacher)}, which cannot learn from "
            "itself.",
            "Name a stronger model as teacher.",
        )
    check_teacher(config.teacher, config.base, tokenizer, prompts.pairs)


def _build_trainer(
    config: DistillConfig,
    run_dir: Path,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptSet,
    precision: Precision,
) -> StudentTrainer:
    steps = total_steps(config, prompts.rows, config.rows_per_step)
    arguments = (
        training_arguments(config, run_dir, precision, steps, longest_sequence(config, prompts))
        | generation_arguments(config)
        | {"beta": config.beta}
    )
    teacher = load_config(get_base_model(config.teacher))
    attention = pick_attention(config.attention, pick_device(config.queue), teacher, config.precision)
    vocabulary = model.config.get_text_config().vocab_size
    trainer = StudentTrainer(
        model=model,
        teacher_model=load_teacher(config.teacher, forward_dtype(precision), attention, vocabulary),
        args=TrlConfig(**arguments),
        train_dataset=build_prompt_dataset(prompts, steps * config.rows_per_step, config.seed),
        processing_class=tokenizer,
        peft_config=new_adapter_config(config, model),
    )
    return cast_adapter_to_fp32(trainer)


if __name__ == "__main__":
    run_program(DistillConfig, run, plan)
