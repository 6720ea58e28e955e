"""The micro-batches of each optimizer step, in the order of the torch trainers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from trainers.configs.training import TrainingConfig
from trainers.rendering.cache.mapped import Int32s, MappedRows
from trainers.rendering.render import IGNORE_INDEX
from trainers.training.samplers import StepSampler

# MLX compiles a step for each shape, so the lengths of micro-batches are rounded up.
LENGTH_MULTIPLE = 32


@dataclass(frozen=True)
class MicroBatch:
    """Arguments of the loss after the network, and what they count as."""

    inputs: tuple[mx.array, ...]
    weight: float
    """Loss tokens or pairs: the sum of the step's losses is divided by that of its weights."""
    tokens: int
    """Tokens without padding."""
    rows: int


@dataclass(frozen=True)
class StepBatches:
    """The micro-batches of one optimizer step; steps are counted from 1."""

    step: int
    epoch: float
    """Passes over the dataset after this step."""
    micro_batches: list[MicroBatch]


# Makes a micro-batch of rows, given all rows of their step (or of the validation) too.
MakeBatch = Callable[[Sequence[int], Sequence[int]], MicroBatch]


def iterate_steps(
    config: TrainingConfig, lengths: Int32s, make_batch: MakeBatch, done: int, total: int
) -> Iterator[StepBatches]:
    """Yield the steps after `done` up to `total`.

    The rows of a step follow from the seed, the epoch and the number of the step alone, so a resumed run
    needs no other position.
    """
    assert config.micro_batch_size is not None
    sampler = StepSampler(lengths, config.batch_size, config.seed)
    steps_per_epoch = -(-len(lengths) // config.batch_size)
    parts_per_epoch = -(-len(lengths) // config.micro_batch_size)
    for epoch in range(done // steps_per_epoch, -(-total // steps_per_epoch)):
        sampler.set_epoch(epoch)
        order = list(sampler)
        first = done - epoch * steps_per_epoch if epoch == done // steps_per_epoch else 0
        for number in range(first, min(steps_per_epoch, total - epoch * steps_per_epoch)):
            rows = order[number * config.batch_size : (number + 1) * config.batch_size]
            micro_batches = [make_batch(some, rows) for some in split_rows(rows, config.micro_batch_size)]
            # As transformers counts, in micro-batches: a short last step is a smaller part of the epoch.
            share = (number + 1) * config.batch_size / config.micro_batch_size / parts_per_epoch
            passed = epoch + min(share, 1)
            yield StepBatches(epoch * steps_per_epoch + number + 1, passed, micro_batches)


def split_rows(rows: Sequence[int], size: int) -> list[Sequence[int]]:
    """Return consecutive parts of at most `size` rows."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def completion_batches(mapped: MappedRows, indices: npt.NDArray[np.int64]) -> MakeBatch:
    """Return a function that makes micro-batches of the rows of `indices`: token ids and labels (b, t).

    A label is IGNORE_INDEX where a token carries no loss.
    """
    columns = [mapped.table["input_ids"], mapped.table["labels"]]

    def make_batch(rows: Sequence[int], _: Sequence[int]) -> MicroBatch:
        chosen = [int(indices[row]) for row in rows]
        ids, labels = ([read_row(column, row) for row in chosen] for column in columns)
        # The first token is never predicted.
        n_loss_tokens = sum(int((row[1:] != IGNORE_INDEX).sum()) for row in labels)
        inputs = (pad_rows(ids, 0), pad_rows(labels, IGNORE_INDEX))
        return MicroBatch(inputs, n_loss_tokens, sum(map(len, ids)), len(chosen))

    return make_batch


def pad_rows(rows: Sequence[npt.NDArray[np.int32]], value: int) -> mx.array:
    """Return the rows as an array (b, t), padded on the right, where attention does not see it."""
    longest = max(map(len, rows))
    # One more: a row of n tokens has n - 1 predictions.
    padded: Int32s = np.full(
        (len(rows), -(-(longest - 1) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE + 1), value, np.int32
    )
    for position, row in enumerate(rows):
        padded[position, : len(row)] = row
    return mx.array(padded)


def read_row(column: Any, row: int) -> npt.NDArray[np.int32]:
    """Return one row's token ids or labels from a column of mapped rows."""
    values: npt.NDArray[np.int32] = column[row].values.to_numpy()
    return values
