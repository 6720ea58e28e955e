"""Config of the `select` stage: choose the best of several training stages by their validation loss."""

from typing import Annotated, Literal

from pydantic import Field

from trainers.configs.base import MAX_COUNT, MAX_NEEDS, Config, NonEmpty, StageConfig, StageName
from trainers.configs.validation import MAX_LOSS_BLOCKS, SweptField, SweptValue

Loss = Annotated[float, Field(ge=-1e9, le=1e9, allow_inf_nan=False)]


class TryOutcome(Config):
    """How a try has ended; the worker writes it into the program's config."""

    run_id: NonEmpty = Field(description="Id of the run.")
    model_id: NonEmpty | None = Field(None, description="Id of its model; null if it failed.")
    error: str | None = Field(None, description="Why it failed.")
    loss: Loss | None = Field(None, description="Lowest validation loss.")
    step: int | None = Field(None, ge=0, le=MAX_COUNT, description="Step of that loss.")
    block_losses: list[Loss] = Field(
        default_factory=list,
        max_length=MAX_LOSS_BLOCKS,
        description="Mean losses of consecutive blocks of the validation rows, at that step.",
    )
    seconds: float | None = Field(None, ge=0, description="Seconds from its start to its end.")


class SweepTry(Config):
    """A training stage that may be chosen."""

    stage: StageName = Field(description="Name of an earlier training stage.")
    values: dict[SweptField, SweptValue] = Field(
        default_factory=dict, max_length=len(SweptField), description="The values that were tried in it."
    )
    outcome: TryOutcome | None = Field(None, description="Omit this field: the worker writes it.")


class SelectConfig(StageConfig):
    """Choose the training stage with the lowest validation loss; its model becomes that of this stage."""

    stage: Literal["select"] = Field("select", description="Kind of the stage.")
    tries: list[SweepTry] = Field(
        min_length=1,
        max_length=MAX_NEEDS,
        description="Earlier training stages with the same validation rows that differ only in fields which "
        "a sweep may vary. A stage that fails is not chosen. A `sweep` of a training stage writes them.",
    )
    combinations: int | None = Field(
        None, ge=1, description="Number of all combinations of the sweep, of which these are tried."
    )

    @property
    def device_count(self) -> int:
        """None: the choice starts on a worker that is busy, too."""
        return 0
