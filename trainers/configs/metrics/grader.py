"""Config of the metric that grades responses as OpenAI's testing criteria do."""

import math
from typing import ClassVar, Literal

from pydantic import Field

from trainers.configs.base import NonEmpty
from trainers.configs.graders import (
    Grader,
    LabelModelGrader,
    ScoreModelGrader,
    SimilarityMetric,
    StringCheckGrader,
    TextSimilarityGrader,
    grader_capability,
)
from trainers.configs.metrics.base import MetricConfig, MetricScale


class GraderScore(MetricConfig):
    """Mean score that a grader gives the responses, or the share of the responses that pass.

    The templates of the grader read the row's fields as `item`, and the first response as `sample`.
    """

    can_grow: ClassVar[bool] = False
    metric: Literal["grader"] = Field("grader", description="Kind of metric.")
    grader: Grader = Field(description="The grader, with the fields of OpenAI's API.")
    item: NonEmpty | None = Field(
        None, max_length=200, description="Field of the row that is `item`; null means the row itself."
    )
    report: Literal["score", "passed"] = Field(
        "score", description="`score` is the mean score; `passed` the share of the rows that pass."
    )
    max_error_share: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Share of the rows that may have no score, because a field is missing, a formula is "
        "undefined, or a model or program failed. They have no value; above this share the metric fails. "
        "With 1, all rows may lack one, and the metric is then the lowest score, of 0 rows. A completion "
        "that lacks what the grader reads of it, such as JSON, gets the lowest score instead.",
    )
    concurrency: int = Field(8, ge=1, le=128, description="Responses that are graded at once.")

    @property
    def scale(self) -> MetricScale:
        """The values that the metric can have."""
        if self.report == "passed":
            return MetricScale()
        match self.grader:
            case StringCheckGrader() | LabelModelGrader():
                return MetricScale()
            case ScoreModelGrader():
                return MetricScale(self.grader.range[0], self.grader.range[1], is_share=False)
            case TextSimilarityGrader(evaluation_metric=metric):
                return MetricScale(-1.0 if metric is SimilarityMetric.cosine else 0.0, is_share=False)
        return MetricScale(-math.inf, None, is_share=False)

    @property
    def capability(self) -> str | None:
        """The sandbox, for Python code."""
        return grader_capability(self.grader)
