"""A step of GRPO on a 1.7B model, and the share of its time of each part.

The parts are methods of TRL's trainer, timed from outside; the GPU is waited for at both ends of each.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from trl import GRPOTrainer

from tests.benchmarks.gpu.cases import Bench, Case
from tests.benchmarks.gpu.training_run import run_stage

# A part's own time is without that of the parts that it contains.
PARTS: Final = {
    "generation": "_generate",
    "rewards": "_calculate_rewards",
    "log-probabilities": "_get_per_token_logps_and_entropies",
    "loss": "compute_loss",
    "forward, backward and preparation": "training_step",
}


def list_rollout_cases() -> list[Case]:
    """Return the measurement."""
    return [Case("grpo step of 1.7b", _measure_step, expected_seconds=90)]


def _measure_step(bench: Bench) -> dict[str, Any]:
    values = {
        "stage": "grpo",
        "base": bench.model("1.7b"),
        "dataset": bench.rows("short", 400, (20, 400)),
        "max_steps": 3,
        "batch_size": 64,
        "micro_batch_size": 8,
        "num_generations": 8,
        "max_completion_length": bench.tokens(256),
        "rewards": [{"kind": "chrf"}],
    }
    with _timed_parts() as seconds:
        measured = run_stage(values, bench.folder / "run", bench.tokens(512))
    total = sum(seconds.values())
    return measured | {"shares": {name: round(spent / total, 3) for name, spent in seconds.items()}}


@contextmanager
def _timed_parts() -> Iterator[dict[str, float]]:
    """Yield the seconds of each part, which grow while the trainer works."""
    seconds = dict.fromkeys(PARTS, 0.0)
    running: list[str] = []
    originals = {method: getattr(GRPOTrainer, method) for method in PARTS.values()}

    def timed(part: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            _wait()
            started = time.perf_counter()
            running.append(part)
            try:
                return original(*arguments, **options)
            finally:
                _wait()
                spent = time.perf_counter() - started
                running.pop()
                seconds[part] += spent
                if running:
                    seconds[running[-1]] -= spent

        return call

    try:
        for part, method in PARTS.items():
            setattr(GRPOTrainer, method, timed(part, originals[method]))
        yield seconds
    finally:
        for method, original in originals.items():
            setattr(GRPOTrainer, method, original)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
