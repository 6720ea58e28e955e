"""Config of the `prepare` stage: what a model's tokenizer and template make of a dataset."""

from typing import Literal

from pydantic import Field

from trainers.configs.base import LARGEST_COUNT, DatasetRef, ModelRef, StageConfig


class PrepareConfig(StageConfig):
    """Render rows with the model's chat template and mark the tokens that carry loss."""

    stage: Literal["prepare"] = "prepare"
    base: ModelRef
    dataset: DatasetRef
    rows: int = Field(5, ge=1, le=100, description="Rows to render, from the start of the dataset.")
    max_length: int = Field(
        1024, ge=8, le=LARGEST_COUNT, description="Tokens per row, as the training stage would cut them."
    )
