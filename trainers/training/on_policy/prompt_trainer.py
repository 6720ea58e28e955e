"""TRL's GRPOTrainer with our schedule, our validation, and completions by an engine."""

import warnings
from typing import Any

import torch
from trl import GRPOTrainer

from trainers.training.checkpoints.sharded_trainer import ShardedCheckpointMixin
from trainers.training.on_policy.engine_sampler import EngineSampler
from trainers.training.on_policy.importance_ratios import measure_ratios
from trainers.training.on_policy.rollouts import RolloutRecorder
from trainers.training.schedule import ScheduleMixin


class PromptTrainer(ScheduleMixin, ShardedCheckpointMixin, GRPOTrainer):
    """TRL's trainer with our schedule of the learning rate."""

    rollouts: RolloutRecorder

    def evaluate(self, *arguments: Any, **options: Any) -> Any:
        """Validate with a random state of its own, so that training is the same with and without it."""
        device = self.args.device
        with self.rollouts.paused(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(self.args.seed)
            return super().evaluate(*arguments, **options)


class EngineSampledTrainer(PromptTrainer):
    """A trainer whose completions an engine generates; the loss is corrected by importance ratios."""

    def __init__(self, sampler: EngineSampler, **options: Any) -> None:
        with warnings.catch_warnings():
            # Which TRL is installed is pinned.
            warnings.filterwarnings("ignore", "You are using 'rollout_func'", UserWarning)
            super().__init__(rollout_func=sampler.rollout, **options)
        # TRL corrects the loss, and passes new weights on before it samples, if `use_vllm` is set. As an
        # argument it would import vLLM into this process.
        self.use_vllm, self.vllm_generation, self._last_loaded_step = True, sampler, -1

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, value in measure_ratios(batch, self.accelerator).items():
            metrics[name].append(value)
        return batch
