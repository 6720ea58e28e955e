"""Config of the `evaluate` stage: generate on held-out rows and score the answers."""

from enum import StrEnum
from typing import Literal

from pydantic import Field

from trainers.configs.base import MAX_COUNT, DatasetRef, ModelRef, StageConfig


class Metric(StrEnum):
    """How a generated answer is judged against the row's reference."""

    maths_exact_match = "maths_exact_match"


class EvaluateConfig(StageConfig):
    """Greedy generation on every held-out row, by the model and, if named, by a baseline."""

    stage: Literal["evaluate"] = Field("evaluate", description="Kind of the stage.")
    model: ModelRef
    baseline: ModelRef | None = Field(
        None, description="A second model to compare with, such as the untuned base."
    )
    dataset: DatasetRef
    metric: Metric = Metric.maths_exact_match
    max_rows: int | None = Field(
        None, ge=1, le=MAX_COUNT, description="Score only the first rows of the dataset."
    )
    batch_size: int = Field(32, ge=1, le=MAX_COUNT, description="Prompts generated at once.")
    max_new_tokens: int = Field(256, ge=1, le=MAX_COUNT, description="Tokens generated per prompt at most.")
    seed: int = Field(42, ge=0, lt=2**32)
