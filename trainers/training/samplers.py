"""The order of rows in training."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Sampler


class StepSampler(Sampler[int]):
    """Rows in a new random order each epoch, sorted by length within each optimizer step.

    A step's gradient is the mean over all its tokens, however they are divided into micro-batches, so sorting
    rows within a step changes nothing but the padding. The order depends on the seed, the epoch and the rows
    per step only: a run that resumes with another micro-batch size has the same rows in the same step.

    `lengths` should be an array: a list of Python's numbers needs ten times the memory.
    """

    def __init__(self, lengths: Sequence[int] | npt.NDArray[np.int32], rows_per_step: int, seed: int) -> None:
        self._lengths, self._rows_per_step, self._seed = lengths, rows_per_step, seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose order is returned; accelerate calls this before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        order = torch.randperm(len(self._lengths), generator=generator)
        for start in range(0, len(order), self._rows_per_step):
            step: list[int] = order[start : start + self._rows_per_step].tolist()
            # Longest first: a step that does not fit into memory fails at once.
            yield from sorted(step, key=lambda row: (-int(self._lengths[row]), row))


class StepSamplerMixin:
    """A Trainer that samples with `step_sampler`, which is set after its construction."""

    step_sampler: StepSampler

    def _get_train_sampler(self, train_dataset: Any = None) -> StepSampler:
        return self.step_sampler
