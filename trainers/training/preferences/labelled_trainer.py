"""TRL's KTO trainer with an estimate of the KL divergence over all rows of a step."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import Dataset as TorchDataset
from trl import KTOTrainer
from trl.trainer.utils import use_adapter

from trainers.training.checkpoints.sharded_trainer import ShardedCheckpointMixin
from trainers.training.samplers import StepSampler, StepSamplerMixin
from trainers.training.schedule import ScheduleMixin
from trainers.training.validation import IsolatedValidationMixin


class MismatchSampler(StepSampler):
    """Each row with another row of its step, whose completion estimates the KL divergence.

    The completions of a step are also those of which the divergence is estimated, as in the paper. The other
    row is half a step away, since neighbours have similar lengths and may be the two sides of a pair.
    """

    def __iter__(self) -> Iterator[tuple[int, int]]:  # type: ignore[override]
        rows = list(super().__iter__())
        for start in range(0, len(rows), self._rows_per_step):
            step = rows[start : start + self._rows_per_step]
            for position, row in enumerate(step):
                alone = len(step) == 1
                yield row, rows[start - 1] if alone else step[position - len(step) // 2]


class RowsWithMismatch(TorchDataset[dict[str, Any]]):
    """The rows, each with the completion of another row as `KL_completion_ids`."""

    def __init__(self, rows: Dataset) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: tuple[int, int]) -> dict[str, Any]:
        row, other = index
        example: dict[str, Any] = self._rows[row]
        return example | {"KL_completion_ids": self._rows[other]["completion_ids"]}


class ValidationRows(TorchDataset[dict[str, Any]]):
    """The validation rows, each with the completion of the row that is half of all rows away."""

    def __init__(self, rows: Dataset) -> None:
        self._rows = RowsWithMismatch(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._rows[index, (index - len(self) // 2) % len(self)]


class LabelledTrainer(
    StepSamplerMixin, ScheduleMixin, ShardedCheckpointMixin, IsolatedValidationMixin, KTOTrainer
):
    """TRL's trainer on rows that are already tokenized, whose loss does not depend on the micro-batch."""

    _divergence: torch.Tensor
    _asked_for_policy = False
    _rows_in_step = _batches_in_step = 1

    def set_loss(self, loss_type: str) -> None:
        """Set the loss; only `kto` needs the divergence."""
        self.loss_type = loss_type
        self.calculate_KL = loss_type == "kto"

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """Return the micro-batches of a step, and estimate the divergence on all of them."""
        batches, n_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._batches_in_step = len(batches)
        self._rows_in_step = sum(len(batch["label"]) for batch in batches)
        self._divergence = self._estimate_divergence(batches)
        return batches, n_items

    def evaluate(self, *arguments: Any, **options: Any) -> Any:
        """Evaluate with the divergence over all validation rows."""
        self._divergence = self._estimate_divergence(self.get_eval_dataloader())
        return super().evaluate(*arguments, **options)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        """Return TRL's mean over the micro-batch; in training, weighted by its share of the step's rows."""
        loss = super().compute_loss(model, inputs, *arguments, **options)
        if not self.model.training:
            return loss
        # The Trainer divides by the number of micro-batches, of which the last of an epoch may be smaller.
        return loss * (len(inputs["label"]) * self._batches_in_step / self._rows_in_step)

    def _prepare_dataset(self, dataset: Dataset, *arguments: Any, **options: Any) -> Dataset:
        return dataset

    def _compute_kl_logps(self, model: Any, batch: dict[str, Any]) -> torch.Tensor | None:
        """Return what makes TRL use the step's divergence.

        TRL asks for the policy's log-probabilities, then for the reference's, and takes the mean difference.
        """
        if not self.calculate_KL:
            return None
        self._asked_for_policy = not self._asked_for_policy
        return self._divergence if self._asked_for_policy else torch.zeros_like(self._divergence)

    def _estimate_divergence(self, batches: Any) -> torch.Tensor:
        """Return the mean log-ratio of policy and reference of mismatched completions, over all processes."""
        device = self.args.device
        total, count = torch.zeros(1, device=device), torch.zeros(1, device=device)
        for batch in batches if self.calculate_KL else ():
            inputs = self._prepare_inputs(batch)
            with torch.no_grad(), self.compute_loss_context_manager():
                policy = super()._compute_kl_logps(self.model_wrapped, inputs)
                with self._reference_adapter():
                    reference = super()._compute_kl_logps(self.ref_model or self.model, inputs)
            total += (policy - reference).sum()
            count += len(policy)
        total, count = (self.accelerator.gather(value).sum() for value in (total, count))
        return total / count.clamp(min=1)

    def _reference_adapter(self) -> AbstractContextManager[None]:
        """Return a context in which the model is the reference, if that is no model of its own."""
        if self.ref_model is not None:
            return nullcontext()
        unwrapped = self.accelerator.unwrap_model(self.model)
        adapter: AbstractContextManager[None] = use_adapter(
            unwrapped, adapter_name="ref" if "ref" in unwrapped.peft_config else None
        )
        return adapter
