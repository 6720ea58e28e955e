"""Fields of the training stages that sample completions from the model in training."""

from enum import StrEnum
from typing import Self

from pydantic import Field, model_validator

from trainers.configs.base import MAX_COUNT
from trainers.configs.training import TrainingConfig


class GenerationBackend(StrEnum):
    """Program that generates the completions of each step."""

    transformers = "transformers"
    vllm_colocate = "vllm_colocate"  # vLLM on the training GPUs, which it shares with the model.
    vllm_server = "vllm_server"  # A server that `trl vllm-serve` has started on other GPUs.


class OnPolicyConfig(TrainingConfig):
    """Fields of every stage that trains on completions of the model itself."""

    max_completion_length: int = Field(
        512, ge=1, le=MAX_COUNT, description="Maximum tokens of a completion; longer ones are truncated."
    )
    temperature: float = Field(
        1.0, gt=0, le=10, description="Sampling temperature; higher values give more varied completions."
    )
    generation: GenerationBackend = Field(
        GenerationBackend.transformers, description="Backend that samples completions."
    )
    vllm_memory_share: float = Field(
        0.3, gt=0, lt=1, description="Share of each GPU's memory for vLLM, with `vllm_colocate`."
    )
    vllm_server_url: str | None = Field(
        None, max_length=1024, pattern=r"^https?://", description="URL of the server, with `vllm_server`."
    )
    samples_per_log: int = Field(
        4, ge=0, le=1000, description="Completions written to samples.jsonl with each metric event."
    )

    @model_validator(mode="after")
    def _check_generation(self) -> Self:
        if self.generation is GenerationBackend.vllm_server and self.vllm_server_url is None:
            raise ValueError("generation vllm_server needs a vllm_server_url")
        if self.generation is not GenerationBackend.vllm_server and self.vllm_server_url is not None:
            raise ValueError(f"vllm_server_url is for generation vllm_server, not for {self.generation}")
        return self
