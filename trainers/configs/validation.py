"""Fields for the validation of a training stage on held-out rows."""

from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from trainers.configs.base import MAX_COUNT, MAX_SECONDS, DatasetRef
from trainers.configs.training import TrainingConfig

# Number of blocks of validation rows whose mean losses a result contains.
MAX_LOSS_BLOCKS = 256
MAX_SWEPT_VALUES = 16


class SweptField(StrEnum):
    """A field that a sweep may vary: it does not change what the validation loss measures."""

    learning_rate = "learning_rate"
    schedule = "schedule"
    warmup_ratio = "warmup_ratio"
    weight_decay = "weight_decay"
    max_grad_norm = "max_grad_norm"
    epochs = "epochs"
    max_steps = "max_steps"
    batch_size = "batch_size"
    seed = "seed"
    rank = "tuning.rank"
    alpha = "tuning.alpha"
    dropout = "tuning.dropout"
    dora = "tuning.dora"
    rslora = "tuning.rslora"


SweptValue = bool | int | float | Annotated[str, StringConstraints(max_length=100)]


class ValidationConfig(TrainingConfig):
    """A training stage that is measured on rows that it does not train on."""

    validation_dataset: DatasetRef | None = Field(
        None,
        description="Rows that are not trained on, by which the model is measured during training. Null "
        "disables validation.",
    )
    validate_every_steps: int | None = Field(
        None,
        ge=1,
        le=MAX_COUNT,
        description="Optimizer steps between two validations. Defaults to save_every_steps, else 100.",
    )
    max_validation_rows: int | None = Field(
        None,
        ge=1,
        le=MAX_COUNT,
        description="Use the first rows of the validation dataset only; null uses all.",
    )


class ValidatedTrainingConfig(ValidationConfig):
    """A training stage with a validation loss, early stopping and selection of the best model."""

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

    sweep: dict[str, Annotated[list[SweptValue], Field(min_length=1, max_length=MAX_SWEPT_VALUES)]] | None = (
        Field(
            None,
            min_length=1,
            max_length=len(SweptField),
            description="Values to try by the field, such as `learning_rate` or `tuning.rank`: a job trains "
            "one run for each combination, and the model with the lowest validation loss becomes that of "
            f"this stage. Fields: {', '.join(SweptField)}.",
        )
    )
    sweep_max_runs: int | None = Field(
        None,
        ge=1,
        le=MAX_COUNT,
        description="Maximum number of runs of the sweep; of more combinations, a random sample by `seed` is "
        "tried. Null tries all.",
    )
    sweep_max_seconds: float | None = Field(
        None,
        gt=0,
        le=MAX_SECONDS,
        description="Limit on the training time of all runs of the sweep together, of which each may use an "
        "equal part.",
    )

    @model_validator(mode="after")
    def _check_sweep(self) -> Self:
        if self.sweep is not None and (self.validation_dataset is None or not self.keep_best):
            raise ValueError("a sweep needs a validation_dataset, and keep_best: true")
        return self

    @model_validator(mode="after")
    def _check_early_stopping(self) -> Self:
        if self.validation_dataset is None and self.early_stopping_patience is not None:
            raise ValueError("early_stopping_patience needs a validation_dataset")
        return self
