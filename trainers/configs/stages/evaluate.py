"""Config of the `evaluate` stage: generate on held-out rows and score the completions."""

from typing import Literal

from pydantic import Field

from trainers.configs.base import MAX_COUNT, DatasetRef, ModelRef, Queue, Seed, StageConfig
from trainers.configs.metrics import MathsExactMatch, Metrics


class EvaluateConfig(StageConfig):
    """Greedy generation on every held-out row, by the model and optionally by a baseline."""

    stage: Literal["evaluate"] = Field("evaluate", description="Kind of the stage.")
    model: ModelRef
    baseline: ModelRef | None = Field(
        None, description="A second model to compare with, such as the untuned base."
    )
    dataset: DatasetRef
    metrics: Metrics = Field([MathsExactMatch()])
    max_rows: int | None = Field(
        None, ge=1, le=MAX_COUNT, description="Score the first rows of the dataset only; null scores all."
    )
    batch_size: int = Field(32, ge=1, le=MAX_COUNT, description="Prompts that are generated for at once.")
    max_new_tokens: int = Field(256, ge=1, le=MAX_COUNT, description="Maximum tokens of a completion.")
    seed: Seed = 42

    @property
    def suitable_queues(self) -> tuple[Queue, ...]:
        """A GPU, else the CPU."""
        return (Queue.cuda, Queue.cpu)
