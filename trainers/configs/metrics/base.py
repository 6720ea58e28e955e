"""What the configs of all metrics share."""

from pydantic import Field

from trainers.configs.base import Config, StageName


class MetricConfig(Config):
    """Fields of every metric."""

    metric: str = Field(description="Kind of metric.")
    name: StageName | None = Field(
        None, description="Name in results, unique in the list. Defaults to the kind of metric."
    )

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
