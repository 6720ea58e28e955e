"""Config of the `merge` stage: an adapter becomes part of its base's weights."""

from enum import StrEnum
from typing import Literal

from pydantic import Field

from trainers.configs.base import ModelRef, StageConfig


class ModelFile(StrEnum):
    """How the weights of a whole model are written."""

    safetensors = "safetensors"
    gguf = "gguf"


class MergeDtype(StrEnum):
    """Number format of the merged weights; `auto` keeps that of the base."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class MergeConfig(StageConfig):
    """Merge an adapter into its base, check that the answers stay the same, and write whole weights."""

    stage: Literal["merge"] = "merge"
    model: ModelRef
    dtype: MergeDtype = MergeDtype.auto
    exports: list[ModelFile] = Field(
        default_factory=list, description="Files written beside the safetensors weights: `gguf`."
    )
