"""Config of the `lm_eval` stage: score a model on the tasks of EleutherAI's evaluation harness."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from trainers.configs.base import MAX_COUNT, DatasetPart, DatasetRef, ModelRef, NonEmpty, Queue, Seed
from trainers.configs.engines import EngineClientConfig, RunningEngine
from trainers.configs.stages.harness.tasks import HarnessTasks

MODEL = "model"


class HarnessBackend(StrEnum):
    """How lm-eval reaches the model."""

    hf = "hf"
    completions = "completions"
    chat_completions = "chat_completions"

    @property
    def uses_engine(self) -> bool:
        """Whether the model is served by an engine; else it is loaded into the program."""
        return self in {HarnessBackend.completions, HarnessBackend.chat_completions}


class LmEvalConfig(EngineClientConfig):
    """Score a model on stock tasks of lm-eval, or on own ones."""

    completions_file: ClassVar[str] = "responses-*.jsonl"
    stage: Literal["lm_eval"] = Field("lm_eval", description="Kind of the stage.")
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
    tasks: HarnessTasks
    backend: HarnessBackend = Field(
        HarnessBackend.hf,
        description="`hf` loads the model with transformers; `completions` and `chat_completions` send "
        "requests to `engine`, the latter only for tasks that generate.",
    )
    num_fewshot: int | None = Field(
        None, ge=0, le=100, description="Examples before each prompt; by default as each task defines it."
    )
    max_rows: int | None = Field(
        None, ge=1, le=MAX_COUNT, description="Score only the first rows of each task."
    )
    chat_template: bool = Field(True, description="Render prompts with the model's chat template.")
    fewshot_as_multiturn: bool = Field(True, description="Show the examples as turns of the chat.")
    system_prompt: NonEmpty | None = Field(None, description="System message of every prompt.")
    max_new_tokens: int | None = Field(
        None,
        ge=1,
        le=MAX_COUNT,
        description="Limit of tokens in a response; by default as each task defines it.",
    )
    batch_size: int = Field(16, ge=1, le=4096, description="Prompts in a batch of the backend hf.")
    concurrency: int = Field(16, ge=1, le=1024, description="Requests that are sent to an engine at once.")
    seed: Seed = 1234

    @model_validator(mode="after")
    def _check_backend(self) -> Self:
        if self.backend is HarnessBackend.chat_completions and not self.chat_template:
            raise ValueError("chat_template must be true for chat_completions, which sends messages")
        if self.backend is HarnessBackend.hf and self.options.quantization is not None:
            raise ValueError("options.quantization is for engines; set backend to completions")
        return self

    @property
    def uses_engine(self) -> bool:
        """Whether the worker starts an engine."""
        return self.backend.uses_engine

    @property
    def scored_datasets(self) -> list[DatasetRef]:
        """The datasets of ours whose rows may be scored, which must not be trained on."""
        parts = [part for task in self.tasks for part in task.data or ()]
        return [part.dataset for part in parts if part.split != DatasetPart.train]

    @property
    def engine_models(self) -> dict[str, Any]:
        """The model, if an engine serves it."""
        return {MODEL: self.model} if self.uses_engine else {}

    def with_engines(self, engines: Mapping[str, RunningEngine], pending: Sequence[str] = ()) -> Self:
        """Return the config with the address of the model's engine."""
        engine = engines[MODEL]
        return self.model_copy(update={"engine_url": engine.url, "engine_model": engine.model})

    @property
    def needs_hub(self) -> bool:
        """Whether a task downloads its data."""
        return any(task.data is None for task in self.tasks)

    @property
    def device_count(self) -> int:
        """Devices of the engine, or of the model in the program."""
        return 1 if self.backend is HarnessBackend.hf else self.options.tensor_parallel

    @property
    def suitable_queues(self) -> tuple[Queue, ...]:
        """The queues of the engine, or those of torch."""
        return self.engine.suitable_queues if self.uses_engine else (Queue.cuda, Queue.cpu)
