"""A layer that is recomputed in the backward pass drops the same elements as in the forward pass."""

from functools import partial
from typing import Any

import pytest

pytest.importorskip("mlx.core")

import mlx.core as mx
import mlx.nn as nn

from trainers.mlx.dropout import KeyedDropout, recomputed_activations


class DroppingLayer(nn.Module):  # type: ignore[misc]
    """A layer whose output is the same as the derivative of its sum by the sum of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = mx.ones((16,))
        self.first, self.second = KeyedDropout(0.5), KeyedDropout(0.5)

    def __call__(self, x: Any) -> Any:
        return self.second(self.first(x * self.weight))


class DroppingNetwork(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.layers = [DroppingLayer(), DroppingLayer()]

    def __call__(self, x: Any) -> Any:
        return self.layers[0](x).sum() + self.layers[1](x).sum()


@pytest.mark.parametrize("is_compiled", [False, True])
def test_the_gradient_is_that_of_the_loss(is_compiled: bool) -> None:
    network = DroppingNetwork()
    state = [network.state, mx.random.state]

    def step(x: Any) -> Any:
        return nn.value_and_grad(network, lambda model, x: model(x))(network, x)

    mx.enable_compile()
    run = partial(mx.compile, inputs=state, outputs=state)(step) if is_compiled else step
    with recomputed_activations(network):
        found = [run(mx.arange(16).astype(mx.float32)) for _ in range(4)]
    losses = [loss.item() for loss, _ in found]
    gradients = [sum(layer["weight"].sum().item() for layer in grads["layers"]) for _, grads in found]
    assert gradients == losses
    assert len(set(losses)) > 1
