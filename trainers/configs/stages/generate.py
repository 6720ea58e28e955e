"""Config of the `generate` stage: a model's completions of the rows of a dataset."""

from typing import Literal

from pydantic import Field

from trainers.configs.base import MAX_COUNT, DatasetRef, NonEmpty
from trainers.configs.engines import EngineClientConfig


class GenerateConfig(EngineClientConfig):
    """Complete every row with an engine; `predictions.jsonl` keeps the order of the rows."""

    stage: Literal["generate"] = Field("generate", description="Kind of the stage.")
    dataset: DatasetRef
    max_rows: int | None = Field(None, ge=1, le=MAX_COUNT, description="Complete only the first rows.")
    system_prompt: NonEmpty | None = Field(
        None, description="System message of every row; replaces the row's own."
    )
    max_new_tokens: int = Field(256, ge=1, le=MAX_COUNT, description="Limit of tokens in a completion.")
    temperature: float = Field(0.0, ge=0, le=2, description="0 is greedy decoding.")
    top_p: float = Field(
        1.0, gt=0, le=1, description="Sample from the most likely tokens whose probabilities sum to this."
    )
    seed: int = Field(42, ge=0, lt=2**32, description="Row n is sampled with the seed `seed + n`.")
    concurrency: int = Field(16, ge=1, le=1024, description="Rows that are sent to the engine at once.")
