"""When an evaluation ends before its last row: once a test decides that may be looked at after each row."""

from typing import Annotated

from pydantic import Field

from trainers.configs.base import MAX_COUNT, Config, NonEmpty, StageName

MAX_VALUE = 1e9

Limit = Annotated[float, Field(ge=-MAX_VALUE, le=MAX_VALUE)]


class EarlyStop(Config):
    """A condition on `model`, after whose decision no further row is completed."""

    metric: NonEmpty | None = Field(
        None, description="Name of a metric of this evaluation that is a mean over rows; null is the first."
    )
    against: Limit | StageName = Field(
        description="What the model must not be worse than: another model of this evaluation by its name, "
        "such as `baseline`, or a constant on the metric's scale."
    )
    margin: float = Field(
        0.0,
        ge=-MAX_VALUE,
        le=MAX_VALUE,
        description="How much worse the model may be, on the metric's scale. 0 means that it must be better.",
    )
    rows_per_look: int = Field(
        64,
        ge=1,
        le=MAX_COUNT,
        description="Rows that are completed between two looks at the scores; below `concurrency`, the "
        "engine is not busy.",
    )
