"""Whether training has changed the network: what `diagnosis.weight_changes` finds for torch."""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from trainers.runtime import run_dir as files
from trainers.training.diagnosis.weight_changes import WEIGHT_CHANGES


class NetworkChangeDetector:
    """Finds out whether the effective weights differ from those at the start of the run.

    It compares sums of bit patterns: a copy of all weights would need the memory of a second model.
    """

    def __init__(self) -> None:
        self.found = False
        self._before: dict[str, int] = {}

    def start(self, network: nn.Module) -> None:
        """Record the weights before the first step of this attempt."""
        if not self.found:
            self._before = _effective_sums(network)

    def check(self, network: nn.Module) -> None:
        """Compare with the weights at the start."""
        if not self.found:
            self.found = _effective_sums(network) != self._before

    def save(self, checkpoint: Path) -> None:
        """Write into a checkpoint whether the steps before it changed the weights."""
        files.write_json(checkpoint / WEIGHT_CHANGES, {"found": self.found})

    def load(self, checkpoint: Path) -> None:
        """Read what earlier attempts found."""
        self.found = bool((files.read_json(checkpoint / WEIGHT_CHANGES) or {"found": True})["found"])


def _effective_sums(network: nn.Module) -> dict[str, int]:
    """Return a sum over the bits of each trained weight whose change alone changes the network.

    While one factor of an update is 0, as that of a new adapter is, the other has no effect.
    """
    weights = dict(tree_flatten(network.trainable_parameters()))
    zero = {name for name, weight in weights.items() if not weight.any().item()}
    other = {
        name: name.removesuffix(one) + two
        for name in weights
        for one, two in ((".lora_a", ".lora_b"), (".lora_b", ".lora_a"))
        if name.endswith(one)
    }
    # Adding 0 turns -0 into 0. Sums of unsigned integers wrap around.
    sums = {
        name: (weight + 0).view(mx.uint32).sum()
        for name, weight in weights.items()
        if other.get(name) not in zero
    }
    mx.eval(sums)
    return {name: int(total.item()) for name, total in sums.items()}
