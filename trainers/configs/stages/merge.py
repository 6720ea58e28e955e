"""Config of the `merge` stage: an adapter becomes part of its base's weights."""

from enum import StrEnum
from typing import Literal

from pydantic import Field

from trainers.configs.base import ModelRef, StageConfig


class MergeDtype(StrEnum):
    """Number format of the merged weights; `auto` keeps that of the base."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class MergeConfig(StageConfig):
    """Merge an adapter into its base, check that the answers stay the same, and write whole weights.

    Weights are written as safetensors. For GGUF there is no well-kept converter that could be installed as a
    package: convert the folder with the script of llama.cpp.
    """

    stage: Literal["merge"] = Field("merge", description="Kind of the stage.")
    model: ModelRef = Field(description="The model with an adapter, such as `{stage: sft}`.")
    dtype: MergeDtype = MergeDtype.auto
