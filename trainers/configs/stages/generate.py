"""Config of the `generate` stage: a model's answers to the rows of a dataset."""

from typing import Literal

from pydantic import Field

from trainers.configs.base import MAX_COUNT, DatasetRef, ModelRef, NonEmpty, StageConfig
from trainers.configs.engines import EngineChoice


class GenerateConfig(StageConfig, EngineChoice):
    """Answer the last turn of every row by an engine; `predictions.jsonl` keeps the order of the rows."""

    stage: Literal["generate"] = Field("generate", description="Kind of the stage.")
    model: ModelRef
    dataset: DatasetRef
    max_rows: int | None = Field(None, ge=1, le=MAX_COUNT, description="Answer the first rows only.")
    system_prompt: NonEmpty | None = Field(
        None, description="System message of every row, in place of the row's own."
    )
    max_new_tokens: int = Field(256, ge=1, le=MAX_COUNT, description="Tokens of one answer at most.")
    temperature: float = Field(0.0, ge=0, le=2, description="0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="Share of the likeliest tokens that are drawn from.")
    seed: int = Field(42, ge=0, lt=2**32, description="Row n is sampled with seed + n.")
    concurrency: int = Field(16, ge=1, le=1024, description="Rows that the engine works on at once.")
    engine_program: list[str] = Field(
        default_factory=list,
        max_length=20,
        description="Command that starts the engine, by hand only: a worker takes its own setting.",
    )
