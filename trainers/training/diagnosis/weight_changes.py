"""Whether training has changed the model, so that a run which learned nothing does not succeed.

A second copy of the weights would cost as much memory as the model. A checksum of each trained tensor is
compared instead, after each step until the first change; each process reads its own shard.
"""

from pathlib import Path

import torch
from torch import distributed

from trainers.configs.stages.grpo import GrpoConfig
from trainers.configs.training import TrainingConfig
from trainers.runtime import run_dir as files
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import ProgramError

WEIGHT_CHANGES = "weight_changes.json"
# Elements per partial sum; the 64-bit integers of one need 8 times as many bytes.
CHUNK = 1 << 22
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Names of the two factors of a low-rank update, for linear layers and embeddings.
FACTORS = ((".lora_A.", ".lora_B."), (".lora_embedding_A.", ".lora_embedding_B."))


class WeightsUnchanged(ProgramError):
    code = ErrorCode.weights_unchanged


class WeightChangeDetector:
    """Finds out whether the effective weights differ from those at the start of the run."""

    def __init__(self) -> None:
        self.found = False
        self._names: list[str] = []
        self._before: list[int] = []

    def start(self, model: torch.nn.Module) -> None:
        """Record the weights before the first step of this attempt."""
        if not self.found:
            self._names = _effective_tensors(model)
            self._before = _checksums(model, self._names)

    def check(self, model: torch.nn.Module) -> None:
        """Compare with the weights at the start; all processes must call this after the same step."""
        if not self.found:
            changed = _checksums(model, self._names) != self._before
            self.found = _reduce([changed], distributed.ReduceOp.MAX, model)[0]

    def save(self, checkpoint: Path) -> None:
        """Write into a checkpoint whether the steps before it changed the weights."""
        files.write_json(checkpoint / WEIGHT_CHANGES, {"found": self.found})

    def load(self, checkpoint: Path) -> None:
        """Read what earlier attempts found; a checkpoint of an older version counts as changed."""
        self.found = (files.read_json(checkpoint / WEIGHT_CHANGES) or {"found": True})["found"]


def describe_no_change(config: TrainingConfig, steps: int, gradient_norms: list[float]) -> WeightsUnchanged:
    """Return the error for a run that changed no weight, with the likely cause."""
    message = f"After {steps} {'step' if steps == 1 else 'steps'} the model is exactly as before."
    if any(gradient_norms):
        return WeightsUnchanged(
            f"{message} The updates at learning_rate {config.learning_rate:g} are too small for its weights.",
            f"Raise learning_rate; the default is {config.default_learning_rates[config.tuning.method]:g}.",
        )
    if isinstance(config, GrpoConfig):
        return WeightsUnchanged(
            f"{message} The gradient was 0: all completions of each prompt had equal rewards.",
            "Choose prompts that the model solves sometimes, raise temperature or num_generations, or "
            "correct the rewards; samples.jsonl shows the completions and their rewards.",
        )
    return WeightsUnchanged(
        f"{message} The gradient of every trained weight was 0.",
        "Check with the dataset's preview that the rows have loss tokens, and that tuning.target_modules "
        "names layers that the model uses.",
    )


def _effective_tensors(model: torch.nn.Module) -> list[str]:
    """Return the names of the trained tensors whose change alone changes the model.

    While one factor of a low-rank update is 0, as that of a new adapter is, so is their product: the other
    factor has no effect.
    """
    trained = [name for name, tensor in model.named_parameters() if tensor.requires_grad]
    tensors = dict(model.named_parameters())
    are_zero = [not _local(tensors[name]).any().item() for name in trained]
    zero = {
        name
        for name, is_zero in zip(trained, _reduce(are_zero, distributed.ReduceOp.MIN, model), strict=True)
        if is_zero
    }
    return [name for name in trained if _other_factor(name) not in zero]


def _other_factor(name: str) -> str | None:
    for pair in FACTORS:
        for factor, other in (pair, pair[::-1]):
            if factor in name:
                return name.replace(factor, other)
    return None


def _checksums(model: torch.nn.Module, names: list[str]) -> list[int]:
    tensors = dict(model.named_parameters())
    sums = [_checksum(_local(tensors[name])) for name in names]
    # One transfer from the device for all tensors.
    return torch.stack(sums).tolist() if sums else []


def _checksum(tensor: torch.Tensor) -> torch.Tensor:
    """Return the sum of all bit patterns modulo 2^64, each times an odd number that depends on its place."""
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    bits = BITS[tensor.element_size()]
    for start, chunk in enumerate(tensor.detach().reshape(-1).split(CHUNK)):
        # Adding 0 turns -0 into 0.
        values = (chunk + 0).view(bits).long()
        places = torch.arange(len(values), device=tensor.device) + start * CHUNK
        total += (values * (2 * places + 1)).sum()
    return total


def _local(parameter: torch.Tensor) -> torch.Tensor:
    """Return the part of a parameter that this process holds."""
    if hasattr(parameter, "ds_tensor"):  # DeepSpeed ZeRO-3 keeps the whole parameter empty between uses.
        shard: torch.Tensor = parameter.ds_tensor
        return shard
    if hasattr(parameter, "to_local"):
        local: torch.Tensor = parameter.to_local()
        return local
    return parameter


def _reduce(
    flags: list[bool], operation: "distributed.ReduceOp.RedOpType", model: torch.nn.Module
) -> list[bool]:
    if not distributed.is_initialized():
        return flags
    device = next(model.parameters()).device
    reduced = torch.tensor(flags, dtype=torch.int32, device=device)
    distributed.all_reduce(reduced, op=operation)
    return [bool(flag) for flag in reduced.tolist()]
