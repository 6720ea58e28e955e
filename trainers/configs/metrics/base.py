"""What the configs of all metrics share."""

from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field

from trainers.configs.base import Config, StageName


@dataclass(frozen=True)
class MetricScale:
    """The values that a metric can have: by default the share of rows that are right."""

    low: float = 0.0
    high: float | None = 1.0
    higher_is_better: bool = True
    is_share: bool = True
    """Whether each row's value is 0 or 1."""

    @property
    def best(self) -> float | None:
        """The best value; None if there is none."""
        return self.high if self.higher_is_better else self.low

    def is_good(self, value: float, limit: float) -> bool:
        """Return whether a value is at least as good as a limit."""
        return value >= limit if self.higher_is_better else value <= limit

    def loosen(self, limit: float, margin: float) -> float:
        """Return the limit that is worse by a margin."""
        return limit - margin if self.higher_is_better else limit + margin


class MetricConfig(Config):
    """Fields of every metric."""

    can_grow: ClassVar[bool] = True
    """Whether the value is the mean of the rows' values, each of which its own responses decide at once."""

    metric: str = Field(description="Kind of metric.")
    name: StageName | None = Field(
        None, description="Name in results, unique in the list. Defaults to the kind of metric."
    )

    @property
    def scale(self) -> MetricScale:
        """The values that the metric can have."""
        return MetricScale()

    @property
    def label(self) -> str:
        """The name in results."""
        return self.name or self.metric

    @property
    def min_samples(self) -> int:
        """Responses to each prompt that the metric needs."""
        return 1

    @property
    def capability(self) -> str | None:
        """What a worker must have, and announce, besides the packages of the trainers."""
        return None
