"""Config of the `generate` stage: a model's completions of the rows of a dataset."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

from pydantic import Field

from trainers.configs.base import MAX_COUNT, DatasetRef, ModelRef, NonEmpty
from trainers.configs.engines import EngineClientConfig, RunningEngine

MODEL = "model"


class GenerateConfig(EngineClientConfig):
    """Complete every row with an engine; `predictions.jsonl` keeps the order of the rows."""

    completions_file: ClassVar[str] = "predictions.jsonl"
    stage: Literal["generate"] = Field("generate", description="Kind of the stage.")
    model: ModelRef
    engine_url: NonEmpty | None = Field(
        None,
        description="URL of a running engine, such as `http://127.0.0.1:8001`. Only by hand: for a job, the "
        "worker starts the engine.",
    )
    engine_model: NonEmpty | None = Field(
        None,
        description="Name of the model in requests to `engine_url`; by default `model` as it is written.",
    )
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

    @property
    def engine_models(self) -> dict[str, Any]:
        """The model."""
        return {MODEL: self.model}

    def with_engines(self, engines: Mapping[str, RunningEngine], pending: Sequence[str] = ()) -> Self:
        """Return the config with the address of the model's engine."""
        engine = engines[MODEL]
        return self.model_copy(update={"engine_url": engine.url, "engine_model": engine.model})
