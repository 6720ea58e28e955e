"""In which order rows are trained."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler


class StepSamplerMixin:
    """A mixin for trainers whose `step_order` is set once they are made."""

    step_order: "StepSampler"

    def _get_train_sampler(self, train_dataset: Any = None) -> "StepSampler":
        return self.step_order


class StepSampler(Sampler[int]):
    """Rows in a new random order each epoch, in which those of one optimizer step stand by length.

    A step's gradient is the mean over all its tokens, however they are divided into micro-batches; rows of
    like length beside each other only save padding. Since the order depends on the seed, the epoch and the
    rows per step alone, a run that resumes with another micro-batch meets the same rows in the same step.
    """

    def __init__(self, lengths: Sequence[int], rows_per_step: int, seed: int) -> None:
        self._lengths, self._rows_per_step, self._seed = lengths, rows_per_step, seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's order; accelerate calls this before each."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        order: list[int] = torch.randperm(len(self._lengths), generator=generator).tolist()
        for start in range(0, len(order), self._rows_per_step):
            step = order[start : start + self._rows_per_step]
            # The longest first: a step that does not fit in memory fails at once.
            yield from sorted(step, key=lambda row: (-self._lengths[row], row))
