"""AdamW with the settings of the torch trainers."""

from typing import Any

import mlx.core as mx
import mlx.optimizers as optimizers


class DecayedAdamW(optimizers.AdamW):  # type: ignore[misc]
    """AdamW with bias correction, as torch has it, that does not decay vectors: biases, norms and magnitudes.

    The learning rate is set before each step. The state has fp32 moments for each trained weight.
    """

    def __init__(self, weight_decay: float) -> None:
        super().__init__(learning_rate=0.0, weight_decay=weight_decay, bias_correction=True)

    def apply_single(self, gradient: Any, parameter: Any, state: Any) -> Any:
        """Return the updated parameter."""
        if parameter.ndim > 1:
            return super().apply_single(gradient, parameter, state)
        return optimizers.Adam.apply_single(self, gradient, parameter, state)


def set_learning_rate(optimizer: optimizers.Optimizer, rate: float) -> None:
    """Set the learning rate of the next step."""
    optimizer.learning_rate = mx.array(rate, dtype=mx.float32)
