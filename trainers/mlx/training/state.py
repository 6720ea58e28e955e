"""The state of a run in a checkpoint: optimizer and random state in one file, next to the model.

The weights are those of the model, in fp32 as they are trained. The schedule, the order of rows and the
position in them follow from the number of the step.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.optimizers import Optimizer
from mlx.utils import tree_flatten, tree_unflatten

from trainers.mlx.adapters import load_adapter_weights
from trainers.modeling.model_files import is_adapter
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import ProgramError

# Not directly in the checkpoint: there, files of safetensors are the model's.
STATE = "training/state.safetensors"
# Of versions before the model was a part of the checkpoint: optimizer, random state and weights in one file.
EARLIER_STATE = "state.safetensors"
OPTIMIZER, RANDOM = "optimizer.", "random_key"


class CheckpointUnsupported(ProgramError):
    """A checkpoint from which this version cannot resume with MLX."""

    code = ErrorCode.checkpoint_unsupported


def save_state(folder: Path, optimizer: Optimizer) -> None:
    """Write the state into a folder, which contains the model."""
    random: Any = mx.random.state
    arrays = {RANDOM: random[0]}
    arrays |= {OPTIMIZER + name: value for name, value in tree_flatten(optimizer.state)}
    (folder / STATE).parent.mkdir()
    mx.save_safetensors(str(folder / STATE), arrays)


def load_state(folder: Path, network: nn.Module, optimizer: Optimizer) -> None:
    """Restore the model and the state; the network has the same trained weights.

    Raises CheckpointUnsupported for a checkpoint of another program or of an earlier version.
    """
    if not (folder / STATE).is_file():
        is_earlier = (folder / EARLIER_STATE).is_file()
        writer = "an earlier version of this service" if is_earlier else "another backend than MLX"
        raise CheckpointUnsupported(
            f"The checkpoint {folder.name} was written by {writer}; it has no {STATE}, which MLX needs.",
            "Submit the job again, which trains from the start, or resume it with the "
            f"{'version' if is_earlier else 'backend'} that wrote it.",
        )
    if is_adapter(folder):
        load_adapter_weights(network, folder)
    else:
        network.load_weights(str(folder / "model.safetensors"))
    arrays: Any = mx.load(str(folder / STATE))
    optimizer.state = tree_unflatten(_named(arrays, OPTIMIZER))
    _restore_random_key(arrays[RANDOM])
    mx.eval(network.parameters(), optimizer.state)


@contextmanager
def unchanged_random_state() -> Iterator[None]:
    """Restore the random state at the end: the layers of a new network draw their first weights."""
    random: Any = mx.random.state
    key = mx.array(random[0].tolist(), mx.uint32)
    try:
        yield
    finally:
        _restore_random_key(key)


def _restore_random_key(key: Any) -> None:
    # MLX refuses to assign its state; a seed of 64 bits is the key itself.
    high, low = key.tolist()
    mx.random.seed((high << 32) | low)


def _named(arrays: Any, prefix: str) -> list[tuple[str, Any]]:
    return [(name.removeprefix(prefix), value) for name, value in arrays.items() if name.startswith(prefix)]
