"""Cases about memory: measured peaks against the estimate, and a stage that runs out of it and recovers."""

from typing import Any, Final

import torch
from torch.nn import functional

from tests.benchmarks.gpu.cases import Bench, Case
from tests.benchmarks.gpu.training_run import reset_memory, run_stage

ATTENTION: Final = "scaled_dot_product_attention"
MAX_ESTIMATE_ERROR: Final = 0.1
# Of less than this, fragments and kernels are too large a part.
MIN_COMPARED_BYTES: Final = 2 << 30


def list_memory_cases() -> list[Case]:
    """Return the cases; the summary reads the results of those before it."""
    return [
        Case("out of memory and recovery", _run_out_of_memory),
        Case("peaks against estimates", _summarize_estimates),
    ]


def _summarize_estimates(bench: Bench) -> dict[str, Any]:
    """Return the estimate's error in each case that has one, and which are beyond the bound.

    On a CPU the libraries are most of a tiny model's memory, so the bound is for GPUs.
    """
    errors = {
        name: measured["estimate_error"]
        for name, measured in bench.results.items()
        if "estimate_error" in measured and (bench.is_tiny or measured["peak_bytes"] >= MIN_COMPARED_BYTES)
    }
    beyond = sorted(name for name, error in errors.items() if abs(error) > MAX_ESTIMATE_ERROR)
    return {"estimate_errors": errors, "bound": MAX_ESTIMATE_ERROR, "beyond_bound": beyond}


def _run_out_of_memory(bench: Bench) -> dict[str, Any]:
    """Limit the GPU to what recomputed activations need, fail with kept ones, and train with recomputed ones.

    Tells whether the failure is torch's own error, what it left allocated, and whether the same process can
    then train. Without a GPU the error is raised by hand in the first attention.
    """
    length = bench.tokens(2048)
    values = {
        "stage": "sft",
        "base": bench.model("0.6b"),
        "dataset": bench.rows("long", 64, (5000, 5000)),
        "max_length": length,
        "max_steps": 3,
        "batch_size": 16,
        "micro_batch_size": 16,
        "activation_checkpointing": True,
    }
    recomputed = run_stage(values, bench.folder / "run", length)
    limit = _Limit(bench, int(recomputed["peak_bytes"] * 1.3))
    with limit:
        try:
            run_stage(values | {"activation_checkpointing": False}, bench.folder / "run", length)
            failure = None
        except torch.OutOfMemoryError as error:
            failure = str(error).splitlines()[0]
        reset_memory()
        left = torch.cuda.memory_allocated() if bench.device.type == "cuda" else None
        limit.allow()
        recovered = run_stage(values, bench.folder / "run", length)
    return {
        "limit_bytes": limit.limit_bytes,
        "failure": failure,
        "left_bytes": left,
        "recovered_losses": recovered["losses"],
        "agrees": failure is not None and recovered["losses"] == recomputed["losses"],
    }


class _Limit:
    """A limit of the GPU's memory; on a CPU, an error in the first attention until it is allowed."""

    def __init__(self, bench: Bench, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._is_gpu = bench.device.type == "cuda"
        self._attend = functional.scaled_dot_product_attention

    def __enter__(self) -> "_Limit":
        if self._is_gpu:
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, self.limit_bytes / total))
        else:
            setattr(functional, ATTENTION, self._fail)
        return self

    def __exit__(self, *error: object) -> None:
        if self._is_gpu:
            torch.cuda.set_per_process_memory_fraction(1.0)
        self.allow()

    def allow(self) -> None:
        """End the error of a CPU; the limit of a GPU stays."""
        setattr(functional, ATTENTION, self._attend)

    @staticmethod
    def _fail(*arguments: Any, **options: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("raised by hand: a CPU has no limit")
