"""Fields of the training stages that sample completions from the model in training."""

from enum import StrEnum
from typing import Self

from pydantic import Field, model_validator

from trainers.configs.base import MAX_COUNT, MAX_SECONDS, NonEmpty
from trainers.configs.engines import EngineKind
from trainers.configs.training import FullTuning, LoraTuning, Parallelism, TrainingConfig

# The highest rank of an engine's adapters.
MAX_ENGINE_RANK = 512


class GenerationBackend(StrEnum):
    """Program that generates the completions of each step."""

    transformers = "transformers"  # The training program itself.
    vllm = "vllm"  # vLLM, which the training program starts on its own devices.
    hf = "hf"  # Our engine hf, started like vLLM: for a trial of that path on a host without vLLM.

    @property
    def engine(self) -> EngineKind | None:
        """The engine that is started; None if the training program generates."""
        return None if self is GenerationBackend.transformers else EngineKind(self.value)


class OnPolicyConfig(TrainingConfig):
    """Fields of every stage that trains on completions of the model itself."""

    max_completion_length: int = Field(
        512, ge=1, le=MAX_COUNT, description="Maximum tokens of a completion; longer ones are truncated."
    )
    temperature: float = Field(
        1.0, gt=0, le=10, description="Sampling temperature; higher values give more varied completions."
    )
    samples_per_log: int = Field(
        4, ge=0, le=1000, description="Completions written to samples.jsonl with each metric event."
    )


class EngineSampledConfig(OnPolicyConfig):
    """Fields of a stage whose completions an engine can generate.

    The engine has a copy of the base and gets the adapter after each step.
    """

    generation: GenerationBackend = Field(
        GenerationBackend.transformers,
        description="Program that generates completions. `vllm` is faster; it needs LoRA without "
        "quantization or dropout, and a worker with vLLM.",
    )
    vllm_memory_share: float = Field(
        0.3, gt=0, lt=1, description="Share of each GPU's memory for vLLM, with generation `vllm`."
    )
    engine_timeout_seconds: float = Field(
        1800,
        ge=1,
        le=MAX_SECONDS,
        description="Seconds within which the engine of `generation` must be ready, and within which it must "
        "return the completions of a step. Then the run ends with `engine_failed`.",
    )
    engine_program: list[NonEmpty] | None = Field(
        None,
        max_length=64,
        description="Command that starts the engine; set by the worker. By hand, the engine is looked for on "
        "PATH.",
    )

    @property
    def capability(self) -> str | None:
        """The engine that generates completions."""
        engine = self.generation.engine
        return None if engine is None else engine.capability

    @property
    def node_obstacles(self) -> list[str]:
        """Also vLLM: its engine serves the processes of one host."""
        uses_vllm = self.generation is not GenerationBackend.transformers
        fault = f"generation {self.generation} serves the processes of one host; set it to transformers"
        return [*super().node_obstacles, *([fault] if uses_vllm else [])]

    @model_validator(mode="after")
    def _check_generation(self) -> Self:
        if self.generation.engine is None:
            return self
        if (reason := _engine_obstacle(self)) is not None:
            raise ValueError(f"generation {self.generation} {reason}, or set generation to transformers")
        return self


def _engine_obstacle(config: EngineSampledConfig) -> str | None:
    """Return why no engine can generate for the stage, and what to change; None if one can."""
    tuning = config.tuning
    if isinstance(tuning, FullTuning):
        return (
            "cannot follow full tuning, because a running engine takes new adapters, but no new base: set "
            "tuning.method to lora"
        )
    if tuning.quantization is not None:
        return (
            f"cannot follow tuning.quantization {tuning.quantization}, because the engine would sample from "
            "the base that is not quantized: remove it"
        )
    if tuning.dropout:
        return (
            f"cannot follow tuning.dropout {tuning.dropout:g}, because the engine samples without it, and "
            "every importance ratio would be wrong: set it to 0"
        )
    if config.parallelism in (Parallelism.fsdp2, Parallelism.zero3):
        return (
            "needs a whole copy of the base on each device for its engine, so sharding it with parallelism "
            f"{config.parallelism} saves nothing: use ddp or zero2"
        )
    return _adapter_obstacle(tuning, config.generation)


def _adapter_obstacle(tuning: LoraTuning, generation: GenerationBackend) -> str | None:
    if tuning.dora and generation is GenerationBackend.vllm:
        return "cannot load adapters with tuning.dora: set it to false"
    if tuning.rank > MAX_ENGINE_RANK:
        return f"loads adapters up to rank {MAX_ENGINE_RANK}, not tuning.rank {tuning.rank}: lower it"
    return None
