"""Configs of metrics that compare response and reference for equality."""

from typing import Literal

from pydantic import Field

from trainers.configs.metrics.base import MetricConfig


class ExactMatch(MetricConfig):
    """Share of the rows whose response is the reference."""

    metric: Literal["exact_match"] = Field("exact_match", description="Kind of metric.")
    ignore_case: bool = Field(False, description="Compare without regard to upper and lower case.")
