"""Fields by which a training stage watches held-out rows while it learns."""

from typing import Self

from pydantic import Field, model_validator

from trainers.configs.base import MAX_COUNT, DatasetRef
from trainers.configs.training import TrainingConfig


class ValidatedTrainingConfig(TrainingConfig):
    """A training stage with a loss on held-out rows, early stopping, and the best model kept."""

    validation_dataset: DatasetRef | None = Field(
        None, description="Rows on which the loss is computed now and then; they are not trained on."
    )
    validate_every_steps: int | None = Field(
        None,
        ge=1,
        le=MAX_COUNT,
        description="Steps between two validations; save_every_steps by default.",
    )
    max_validation_rows: int | None = Field(
        None, ge=1, le=MAX_COUNT, description="Only the first rows of the validation dataset."
    )
    early_stopping_patience: int | None = Field(
        None, ge=1, le=1000, description="Stop after so many validations in a row without a better loss."
    )
    early_stopping_min_improvement: float = Field(
        0.0, ge=0, le=100, description="How much lower a loss must be to count as better."
    )
    keep_best: bool = Field(
        True, description="Publish the model with the lowest validation loss, not the last one."
    )

    @model_validator(mode="after")
    def _validation_is_possible(self) -> Self:
        if self.validation_dataset is None and self.early_stopping_patience is not None:
            raise ValueError("early_stopping_patience needs a validation_dataset")
        return self
