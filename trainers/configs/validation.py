"""Fields for the validation of a training stage on held-out rows."""

from typing import Self

from pydantic import Field, model_validator

from trainers.configs.base import MAX_COUNT, DatasetRef
from trainers.configs.training import TrainingConfig


class ValidatedTrainingConfig(TrainingConfig):
    """A training stage with a validation loss, early stopping and selection of the best model."""

    validation_dataset: DatasetRef | None = Field(
        None, description="Rows for the validation loss; they are not trained on. Null disables validation."
    )
    validate_every_steps: int | None = Field(
        None,
        ge=1,
        le=MAX_COUNT,
        description="Optimizer steps between two validations. Defaults to save_every_steps.",
    )
    max_validation_rows: int | None = Field(
        None,
        ge=1,
        le=MAX_COUNT,
        description="Use the first rows of the validation dataset only; null uses all.",
    )
    early_stopping_patience: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="Stop after this number of consecutive validations without improvement; null never "
        "stops.",
    )
    early_stopping_min_improvement: float = Field(
        0.0, ge=0, le=100, description="Minimum decrease of the validation loss that counts as improvement."
    )
    keep_best: bool = Field(
        True, description="Publish the model with the lowest validation loss instead of the last one."
    )

    @model_validator(mode="after")
    def _check_early_stopping(self) -> Self:
        if self.validation_dataset is None and self.early_stopping_patience is not None:
            raise ValueError("early_stopping_patience needs a validation_dataset")
        return self
