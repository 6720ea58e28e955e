"""The training loop: micro-batches are accumulated, clipped and applied, one optimizer step after the other.

mlx-lm's `train()` averages the means of micro-batches, does not clip gradients, and its step returns nothing
but a loss; see docs/decisions.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.optimizers import Optimizer, clip_grad_norm
from mlx.utils import tree_map

from trainers.mlx.training.batches import MicroBatch, StepBatches
from trainers.mlx.training.optimizer import set_learning_rate

# `loss(network, *inputs)` returns the sum over the micro-batch, and sums of further values to report.
Loss = Callable[..., tuple[mx.array, dict[str, mx.array]]]


@dataclass(frozen=True)
class StepResult:
    """Values of one optimizer step, means over all that its micro-batches count."""

    step: int
    epoch: float
    loss: float
    values: dict[str, float]
    grad_norm: float
    learning_rate: float
    tokens: int


def train(
    network: nn.Module,
    optimizer: Optimizer,
    steps: Iterable[StepBatches],
    loss: Loss,
    *,
    learning_rate: Callable[[int], float],
    max_grad_norm: float,
    on_step: Callable[[StepResult], bool],
    is_compiled: bool,
) -> None:
    """Train until the steps end or `on_step` returns False.

    `learning_rate` returns the rate of a step, counted from 1. A step's loss and gradient are the sums over
    all its micro-batches divided by the sum of their weights, so the size of the micro-batches changes
    nothing.
    """
    accumulate, apply = _make_step(network, optimizer, loss, max_grad_norm, is_compiled)
    network.train()
    for batches in steps:
        rate = learning_rate(batches.step)
        set_learning_rate(optimizer, rate)
        weight = sum(batch.weight for batch in batches.micro_batches)
        gradients, total, values = None, mx.array(0.0), dict[str, mx.array]()
        for batch in batches.micro_batches:
            share, found, gradients = accumulate(gradients, mx.array(1 / weight), *batch.inputs)
            total = total + share
            values = {name: values.get(name, 0) + value for name, value in found.items()}
            mx.eval(gradients, total, values)
        norm = apply(gradients)
        mx.eval(network.parameters(), optimizer.state, norm)
        result = StepResult(
            step=batches.step,
            epoch=batches.epoch,
            loss=_to_float(total),
            values={name: _to_float(value) for name, value in values.items()},
            grad_norm=_to_float(norm),
            learning_rate=rate,
            tokens=sum(batch.tokens for batch in batches.micro_batches),
        )
        # Shapes differ between steps, so freed memory seldom fits the next one.
        mx.clear_cache()
        if not on_step(result):
            return


@dataclass(frozen=True)
class BatchLoss:
    """The mean loss of a validation batch, with the means of its other values."""

    loss: float
    rows: int
    values: dict[str, float]


def mean_losses(network: nn.Module, batches: Iterable[MicroBatch], loss: Loss) -> list[BatchLoss]:
    """Return the mean loss of each batch, without dropout and random draws."""
    network.eval()
    try:
        found = []
        for batch in batches:
            total, sums = loss(network, *batch.inputs)
            values = {name: _to_float(value) / batch.weight for name, value in sums.items()}
            found.append(BatchLoss(_to_float(total) / batch.weight, batch.rows, values))
            mx.clear_cache()
        return found
    finally:
        network.train()


def _make_step(
    network: nn.Module, optimizer: Optimizer, loss: Loss, max_grad_norm: float, is_compiled: bool
) -> tuple[Any, Any]:
    """Return a function that adds the gradients of a micro-batch, and one that applies their sum."""

    def scaled_loss(network: nn.Module, scale: mx.array, *inputs: mx.array) -> Any:
        total, values = loss(network, *inputs)
        # Scaled before the backward pass, so that the gradients of long rows do not grow large in bf16.
        return total * scale, {name: value * scale for name, value in values.items()}

    value_and_grad = nn.value_and_grad(network, scaled_loss)

    def accumulate(earlier: Any, scale: mx.array, *inputs: mx.array) -> Any:
        (share, values), gradients = value_and_grad(network, scale, *inputs)
        if earlier is not None:
            gradients = tree_map(lambda one, other: one + other, gradients, earlier)
        return share, values, gradients

    def apply(gradients: Any) -> mx.array:
        clipped, norm = clip_grad_norm(gradients, max_grad_norm)
        optimizer.update(network, clipped)
        total: mx.array = norm
        return total

    if not is_compiled:
        return accumulate, apply
    drawn, changed = [network.state, mx.random.state], [network.state, optimizer.state]
    return (
        partial(mx.compile, inputs=drawn, outputs=drawn)(accumulate),
        partial(mx.compile, inputs=changed, outputs=changed)(apply),
    )


def _to_float(value: mx.array) -> float:
    number: Any = value.item()
    return float(number)
