"""What a case is, and what all cases share: models, rows, the time that is left."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass
class Bench:
    """The settings of one execution; models and rows are written once."""

    folder: Path
    device: torch.device
    is_tiny: bool
    deadline: float
    results: dict[str, dict[str, Any]] = field(default_factory=dict)

    def model(self, size: str) -> str:
        """Return the folder of a model of this size, which is tiny if everything is."""
        # A machine without the trainers' libraries runs the case that needs torch alone.
        from tests.benchmarks.gpu.inputs import write_model

        size = "tiny" if self.is_tiny else size
        return str(write_model(self.folder / f"model-{size}", size, self.device))

    def rows(self, name: str, count: int, lengths: tuple[int, int], kind: str = "sft") -> str:
        """Return a file of rows; a tiny one has a sixteenth of the tokens."""
        from tests.benchmarks.gpu.inputs import write_rows

        if self.is_tiny:
            count, lengths = min(count, 64), (max(2, lengths[0] // 16), max(4, lengths[1] // 16))
        path = self.folder / f"{name}.jsonl"
        return str(path) if path.is_file() else write_rows(path, count, lengths, kind)

    def tokens(self, count: int) -> int:
        """Return a number of tokens, reduced as rows are."""
        return max(32, count // 16) if self.is_tiny else count

    @property
    def seconds_left(self) -> float:
        """How long cases may still run."""
        return self.deadline - time.monotonic()


@dataclass(frozen=True)
class Case:
    """One measurement; `needs` names features without which it is skipped with their reason."""

    name: str
    run: Callable[[Bench], dict[str, Any]]
    needs: tuple[str, ...] = ("trainers",)
    # On one H200, with a model that is written already.
    expected_seconds: float = 20.0
    # A published result that this one is compared with.
    bar: dict[str, float] | None = None
