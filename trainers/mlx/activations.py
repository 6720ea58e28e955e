"""Activations that mlx-lm computes otherwise than transformers.

Some of its networks have the exact GELU where the model was trained with the approximation by tanh. The
difference is about 1e-3 in a log-probability, and grows with the size of the activations.
"""

from collections.abc import Callable
from typing import Any

import mlx.nn as nn


def approximate_gelu(network: nn.Module, model_type: str) -> None:
    """Make the blocks of a network compute the GELU by tanh, if its model has that.

    Python looks `__call__` up on the class, so it is replaced there, for all models of the process.
    """
    forward = FORWARDS.get(model_type)
    if forward is not None:
        for kind in {type(block.mlp) for block in network.layers}:
            kind.__call__ = forward


def _gated(mlp: Any, x_bth: Any) -> Any:
    return mlp.down_proj(nn.gelu_approx(mlp.gate_proj(x_bth)) * mlp.up_proj(x_bth))


def _plain(mlp: Any, x_bth: Any) -> Any:
    return mlp.c_proj(nn.gelu_approx(mlp.c_fc(x_bth)))


FORWARDS: dict[str, Callable[[Any, Any], Any]] = {
    "gemma": _gated,
    "gpt_bigcode": _plain,
    "starcoder2": _plain,
}
