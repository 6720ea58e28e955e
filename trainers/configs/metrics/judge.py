"""Configs of metrics that a judge model decides by a rubric."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from trainers.configs.base import ServedModel, StageName
from trainers.configs.metrics.base import MetricConfig, MetricScale

REFERENCE = "reference"
MAX_SCORE = 100


class JudgeConfig(MetricConfig):
    """Fields of every metric that a judge model decides."""

    can_grow: ClassVar[bool] = False
    judge: ServedModel
    rubric: str = Field(
        min_length=1,
        max_length=8000,
        description="What makes a response good, in the language of the judge's prompt, English.",
    )
    show_reference: bool = Field(True, description="Whether the judge sees the row's reference.")
    max_error_share: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Share of the rows that may lack a judgement, because the judge failed or its answer "
        "cannot be read. Such rows have no value; above this share the metric fails.",
    )
    temperature: float | None = Field(
        0.0, ge=0, le=2, description="Temperature of the judge; null sends none, as some models require."
    )
    max_completion_tokens: int = Field(
        1024, ge=16, le=65_536, description="Limit of the tokens of a judgement, its reasoning included."
    )
    json_mode: bool = Field(
        False, description="Ask the endpoint for JSON output (`response_format`), where it supports it."
    )
    concurrency: int = Field(8, ge=1, le=128, description="Requests to the judge at once.")


class JudgeScore(JudgeConfig):
    """Mean score that a judge model gives the responses, on a scale of integers."""

    metric: Literal["judge_score"] = Field("judge_score", description="Kind of metric.")
    lowest: int = Field(1, ge=-MAX_SCORE, le=MAX_SCORE, description="Lowest score, the worst.")
    highest: int = Field(5, ge=-MAX_SCORE, le=MAX_SCORE, description="Highest score, the best.")

    @model_validator(mode="after")
    def _check_scale(self) -> Self:
        if self.lowest >= self.highest:
            raise ValueError(f"lowest ({self.lowest}) must be below highest ({self.highest})")
        return self

    @property
    def scale(self) -> MetricScale:
        """The values that the metric can have."""
        return MetricScale(self.lowest, self.highest, is_share=False)


class JudgePreference(JudgeConfig):
    """Mean preference of a judge model: 1 for a response that it prefers, 0.5 for a tie, 0 for the other.

    The judge sees both responses in both orders, and a row's value is the mean of the two.
    """

    metric: Literal["judge_preference"] = Field("judge_preference", description="Kind of metric.")
    against: StageName = Field(
        REFERENCE,
        description="What the response is compared with: `reference`, the row's own, or another model of the "
        "evaluation, such as `baseline`, whose own value is then 0.5.",
    )

    @property
    def scale(self) -> MetricScale:
        """The values that the metric can have."""
        return MetricScale(is_share=False)
