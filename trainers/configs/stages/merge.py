"""Config of the `merge` stage: merge an adapter into the weights of its base."""

from enum import StrEnum
from typing import Literal

from pydantic import Field

from trainers.configs.base import ModelRef, StageConfig


class MergeDtype(StrEnum):
    """Number format of the merged weights; `auto` is the format of the base."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class MergeConfig(StageConfig):
    """Merge an adapter into its base, verify that the outputs stay the same, and write the full weights.

    The weights are safetensors. The stage `export` also writes GGUF and MLX.
    """

    stage: Literal["merge"] = Field("merge", description="Kind of the stage.")
    model: ModelRef = Field(description="The model with an adapter, such as `{stage: sft}`.")
    dtype: MergeDtype = Field(MergeDtype.auto, description="Number format of the merged weights.")
