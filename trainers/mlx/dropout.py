"""Dropout whose draw can be repeated, and the recomputation of activations that repeats it.

mlx-lm's `grad_checkpoint` draws another dropout mask when it recomputes a layer, so the gradient is not that
of the loss (measured on one layer of four weights: loss 12, gradient 14). Here a layer's key is drawn once,
outside of the recomputed function.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from trainers.mlx.blocks import patched_blocks


class KeyedDropout(nn.Module):  # type: ignore[misc]
    """Dropout by MLX's random state, or by a given key."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        # A leading underscore keeps it out of the parameters.
        self._key: Any = None

    def __call__(self, x: Any) -> Any:
        """Set elements of x to 0, and scale the others so that the mean stays."""
        if not self.training or not self.probability:
            return x
        kept = 1 - self.probability
        return mx.random.bernoulli(kept, x.shape, key=self._key) * x / kept


def replace_dropout(network: nn.Module, *, is_disabled: bool = False) -> None:
    """Replace the dropout of each adapted layer, with the same probability or with none."""
    layers = [
        (name, KeyedDropout(0.0 if is_disabled else 1 - module._p_1))
        for name, module in network.named_modules()
        if isinstance(module, nn.Dropout)
    ]
    network.update_modules(tree_unflatten(layers))


@contextmanager
def recomputed_activations(network: nn.Module) -> Iterator[None]:
    """Recompute each block in the backward pass instead of keeping its activations, inside the context."""
    with patched_blocks(network, _recomputing):
        yield


def _recomputing(call: Any) -> Any:
    def checkpointed(layer: nn.Module, *arguments: Any, **options: Any) -> Any:
        if not layer.training:
            return call(layer, *arguments, **options)
        dropouts = [module for module in layer.modules() if isinstance(module, KeyedDropout)]
        is_random = any(dropout.probability for dropout in dropouts)
        # A key is two integers of 32 bits. It is captured, not passed: it has no gradient. Slices of one
        # array would be computed in the recomputed function, where a compiled step does not find them.
        random: Any = mx.random
        keys = [random.randint(0, 1 << 31, (2,)).astype(mx.uint32) if is_random else None for _ in dropouts]

        def forward(parameters: Any, *arguments: Any, **options: Any) -> Any:
            layer.update(parameters)
            for dropout, key in zip(dropouts, keys, strict=True):
                dropout._key = key
            output = call(layer, *arguments, **options)
            for dropout in dropouts:
                dropout._key = None
            return output

        return mx.checkpoint(forward)(layer.trainable_parameters(), *arguments, **options)

    return checkpointed
