"""Runs a program under FSDP2 on a CPU, where accelerate alone falls back to DDP.

torch's launcher starts it in place of the program:
`-m tests.integration.trainers.distributed.on_cpu trainers.sft …`.
"""

import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from transformers import Trainer

from trainers.runtime.ranks import current_rank
from trainers.training import policy

REPORT = "processes.json"
LOADED = "loaded.json"


def shard_on_cpu() -> None:
    """Make accelerate use its FSDP plugin on a CPU too."""
    original = AcceleratorState.__init__

    def init(self: Any, *arguments: Any, fsdp_plugin: Any = None, **options: Any) -> None:
        original(self, *arguments, fsdp_plugin=fsdp_plugin, **options)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = init


def report_copies(run_dir: Path) -> None:
    """After loading, write how many bytes of weights are in the memory of each process alone."""
    original = policy.load_policy

    def load_policy(*arguments: Any) -> Any:
        model = original(*arguments)
        report = {"copied": sum(p.nbytes for p in model.parameters() if not is_mapped(p))}
        (run_dir / f"{current_rank()}-{LOADED}").write_text(json.dumps(report))
        return model

    policy.load_policy = load_policy  # type: ignore[assignment]


def is_mapped(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is in a file that the kernel maps into memory, so that processes share it."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end, inode = re.match(r"(\w+)-(\w+) \S+ \S+ \S+ (\d+)", line).groups()  # type: ignore[union-attr]
        if int(begin, 16) <= tensor.data_ptr() < int(end, 16):
            return inode != "0"
    return False


def report_sharding(run_dir: Path) -> None:
    """After training, write which parameters each process holds."""
    original = Trainer.train

    def train(self: Any, *arguments: Any, **options: Any) -> Any:
        done = original(self, *arguments, **options)
        if not torch.distributed.is_initialized():
            return done
        parameters = list(self.model_wrapped.parameters())
        report = {
            "world_size": torch.distributed.get_world_size(),
            "kinds": sorted({type(parameter).__name__ for parameter in parameters}),
            "held": sum(
                (p.to_local() if isinstance(p, DTensor) else getattr(p, "ds_tensor", p)).numel()
                for p in parameters
            ),
            "whole": sum(getattr(p, "ds_numel", p.numel()) for p in parameters),
        }
        (run_dir / f"{torch.distributed.get_rank()}-{REPORT}").write_text(json.dumps(report))
        return done

    Trainer.train = train


if __name__ == "__main__":
    module, sys.argv = sys.argv[1], [sys.argv[1], *sys.argv[2:]]
    folder = Path(sys.argv[sys.argv.index("--run-dir") + 1])
    shard_on_cpu()
    report_copies(folder)
    report_sharding(folder)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
