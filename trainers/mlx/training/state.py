"""The state of a run in a checkpoint: trained weights, optimizer, and random state, in one file.

The schedule, the order of rows and the position in them follow from the number of the step.
"""

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.optimizers import Optimizer
from mlx.utils import tree_flatten, tree_unflatten

STATE = "state.safetensors"
WEIGHTS, OPTIMIZER, RANDOM = "model.", "optimizer.", "random_key"


def save_state(folder: Path, network: nn.Module, optimizer: Optimizer) -> None:
    """Write the state into a folder."""
    random: Any = mx.random.state
    arrays = {RANDOM: random[0]}
    arrays |= {WEIGHTS + name: weight for name, weight in tree_flatten(network.trainable_parameters())}
    arrays |= {OPTIMIZER + name: value for name, value in tree_flatten(optimizer.state)}
    mx.save_safetensors(str(folder / STATE), arrays)


def load_state(folder: Path, network: nn.Module, optimizer: Optimizer) -> None:
    """Restore the state; the network has the same trained weights."""
    arrays: Any = mx.load(str(folder / STATE))
    network.load_weights(_named(arrays, WEIGHTS), strict=False)
    optimizer.state = tree_unflatten(_named(arrays, OPTIMIZER))
    # MLX refuses to assign its state; a seed of 64 bits is the key itself.
    high, low = arrays[RANDOM].tolist()
    mx.random.seed((high << 32) | low)
    mx.eval(network.parameters(), optimizer.state)


def _named(arrays: Any, prefix: str) -> list[tuple[str, Any]]:
    return [(name.removeprefix(prefix), value) for name, value in arrays.items() if name.startswith(prefix)]
