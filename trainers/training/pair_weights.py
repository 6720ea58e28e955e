"""The weights of the micro-batches in a step of DPO."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from datasets import Dataset

from trainers.configs.stages.dpo import DpoLoss


class PairWeightMixin:
    """A DPOTrainer whose loss does not depend on how a step is divided into micro-batches.

    TRL takes the mean of each micro-batch, and then the mean of those. That counts a token of `sft` more in a
    micro-batch of short completions, and a pair more in the smaller last micro-batch of an epoch. Here, `sft`
    is a mean over the tokens of the step, and every other loss a mean over its pairs.
    """

    accelerator: Any
    current_gradient_accumulation_steps: int
    eval_dataset: Any
    loss_types: list[str]
    loss_weights: list[float]
    model: Any

    _step_pairs = 0.0
    _step_tokens = 0.0
    _eval_tokens_per_pair: float | None = None

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Return the micro-batches of the next step, and count its pairs and tokens in all processes."""
        samples, count = super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]
        own = torch.tensor([_count(inputs) for inputs in samples], dtype=torch.float64, device=device)
        totals = self.accelerator.reduce(own.sum(dim=0), reduction="sum")
        self._step_pairs, self._step_tokens = totals.tolist()
        return samples, count

    def compute_loss(self, model: Any, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        """Return TRL's loss, its parts weighted by the micro-batch's share of the pairs and tokens."""
        pairs, tokens = _count(inputs)
        if self.model.training:
            # The Trainer divides by the micro-batches of the step, and processes average their gradients.
            parts = self.current_gradient_accumulation_steps * self.accelerator.num_processes
            of_pairs, of_tokens = parts * pairs / self._step_pairs, parts * tokens / self._step_tokens
        else:
            # The Trainer weights the losses of validation by their pairs.
            of_pairs, of_tokens = 1.0, tokens / pairs / self._mean_validation_tokens()
        unchanged = self.loss_weights
        self.loss_weights = [
            weight * (of_tokens if loss == DpoLoss.sft else of_pairs)
            for loss, weight in zip(self.loss_types, unchanged, strict=True)
        ]
        try:
            return super().compute_loss(model, inputs, *arguments, **options)  # type: ignore[misc]
        finally:
            self.loss_weights = unchanged

    def _mean_validation_tokens(self) -> float:
        if self._eval_tokens_per_pair is None:
            dataset: Dataset = self.eval_dataset
            self._eval_tokens_per_pair = sum(map(len, dataset["chosen_ids"])) / len(dataset)
        return self._eval_tokens_per_pair


def _count(inputs: Mapping[str, torch.Tensor]) -> tuple[int, int]:
    """Return the pairs of a micro-batch, and the tokens of its chosen completions."""
    chosen, _ = inputs["completion_mask"].chunk(2)
    # The model does not predict the first token of a sequence.
    return len(chosen), int(chosen[:, 1:].sum())
