"""Config of the `export` stage: a model in the formats of other programs."""

from enum import StrEnum
from typing import Literal

from pydantic import Field

from trainers.configs.base import Config, ModelRef, NonEmpty, StageConfig
from trainers.configs.stages.merge import MergeDtype


class ExportFormat(StrEnum):
    """Format of exported weights; those that begin with `gguf` are for llama.cpp and programs built on it."""

    safetensors = "safetensors"
    gguf_f16 = "gguf_f16"
    gguf_q8_0 = "gguf_q8_0"
    gguf_q4_k_m = "gguf_q4_k_m"
    gguf_adapter = "gguf_adapter"
    mlx = "mlx"
    mlx_adapter = "mlx_adapter"

    @property
    def is_adapter(self) -> bool:
        """Whether the format is the adapter alone, without its base."""
        return self in {ExportFormat.gguf_adapter, ExportFormat.mlx_adapter}

    @property
    def is_gguf(self) -> bool:
        """Whether the converter of llama.cpp writes the format."""
        return self.value.startswith("gguf")


class HubPush(Config):
    """A repository of the hub to which the exported model is uploaded, with a model card."""

    repository: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$",
        description="The repository, `org/name`. Its namespace must be listed in "
        "`TUNESMITH_HUB_PUSH_NAMESPACES`.",
    )
    private: bool = Field(True, description="Whether the repository is private, if it does not exist yet.")


class ExportConfig(StageConfig):
    """Write a model in other formats, load each file again, and compare it with the trained model.

    The product is a model with whole weights as safetensors, and next to them the files of the other formats,
    which `GET /api/v1/models/{id}/files` lists.
    """

    stage: Literal["export"] = Field("export", description="Kind of the stage.")
    model: ModelRef = Field(description="The model, with an adapter or whole weights.")
    formats: list[ExportFormat] = Field(
        default_factory=lambda: [ExportFormat.safetensors],
        min_length=1,
        max_length=len(ExportFormat),
        description="`safetensors` is always written: whole weights, an adapter merged into its base. "
        "`gguf_f16`, `gguf_q8_0` and `gguf_q4_k_m` are whole weights for llama.cpp; `gguf_adapter` is the "
        "adapter alone; `mlx` is a folder for mlx-lm, and `mlx_adapter` one with the adapter alone.",
    )
    dtype: MergeDtype = Field(
        MergeDtype.auto, description="Number format of the safetensors of a merged adapter."
    )
    push: HubPush | None = Field(
        None,
        description="Upload to the hub, by the worker with its own `HF_TOKEN`. The model card has the base "
        "and its licence, the hashes of the data, the settings, and the scores with n and interval.",
    )
    pre_tokenizer: str | None = Field(
        None,
        pattern=r"^[a-z0-9._-]{1,64}$",
        description="Name of llama.cpp's pre-tokenizer, for a tokenizer that its converter does not know, "
        "such as `gpt-2`. The tokens of the file are compared in any case.",
    )
    gguf_environment: NonEmpty | None = Field(
        None,
        description="Folder of the environment that `make gguf` creates. Omit it in a job: the worker sets "
        "it.",
    )

    @property
    def capability(self) -> str | None:
        """What a worker needs in addition to the packages of the stage."""
        return "gguf" if any(form.is_gguf for form in self.formats) else None
