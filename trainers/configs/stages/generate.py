"""Config of the `generate` stage: a model's completions of the rows of a dataset."""

from typing import Literal

from pydantic import Field

from trainers.configs.base import MAX_COUNT, DatasetRef, ModelRef, NonEmpty, StageConfig
from trainers.configs.engines import EngineChoice


class GenerateConfig(StageConfig, EngineChoice):
    """Complete every row with an engine; `predictions.jsonl` keeps the order of the rows."""

    stage: Literal["generate"] = Field("generate", description="Kind of the stage.")
    model: ModelRef
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
    engine_url: NonEmpty | None = Field(
        None,
        description="URL of a running engine, such as `http://127.0.0.1:8001`. Only by hand: for a job, the "
        "worker starts the engine.",
    )
    engine_model: NonEmpty | None = Field(
        None,
        description="Name of the model in requests to `engine_url`; by default `model` as it is written.",
    )

    @property
    def device_count(self) -> int:
        """Devices of the engine."""
        return self.options.tensor_parallel
