r"""Configs of metrics that compare final answers of maths problems."""

from typing import Literal

from pydantic import Field

from trainers.configs.metrics.base import MetricConfig, MetricScale
from trainers.configs.rewards import AnswerForm

MAX_SAMPLES = 1024
RequiredForm = Literal[AnswerForm.hashes, AnswerForm.boxed]


class MathsExactMatch(MetricConfig):
    """Share of the rows whose final answer equals the reference's as a number, wherever it is written."""

    metric: Literal["maths_exact_match"] = Field("maths_exact_match", description="Kind of metric.")


class MathsStrictMatch(MetricConfig):
    r"""Share of the rows whose answer equals the reference's and has the form `#### x` or `\boxed{x}`."""

    metric: Literal["maths_strict_match"] = Field("maths_strict_match", description="Kind of metric.")
    form: RequiredForm | None = Field(
        None, description=r"Required form: `hashes` (`#### x`) or `boxed` (`\boxed{x}`); null accepts both."
    )


class MathVerify(MetricConfig):
    """Share of the rows that the library math-verify calls right; also for answers that are formulas."""

    metric: Literal["math_verify"] = Field("math_verify", description="Kind of metric.")


class PassAtK(MetricConfig):
    """Probability that at least one of k samples has the right final answer."""

    metric: Literal["pass_at_k"] = Field("pass_at_k", description="Kind of metric.")
    k: int = Field(ge=1, le=MAX_SAMPLES, description="Number of samples that a user would draw.")
    strict: bool = Field(
        False, description="Count only answers in the form `#### x` or `\\boxed{x}`, as `maths_strict_match`."
    )

    @property
    def min_samples(self) -> int:
        """Fewer samples than k cannot estimate it."""
        return self.k

    @property
    def scale(self) -> MetricScale:
        """The values that the metric can have."""
        return MetricScale(is_share=False)


class MajorityAtK(MetricConfig):
    """Share of the rows on which the most frequent final answer of the first k samples is right."""

    metric: Literal["majority_at_k"] = Field("majority_at_k", description="Kind of metric.")
    k: int = Field(ge=1, le=MAX_SAMPLES, description="Number of samples that vote.")

    @property
    def min_samples(self) -> int:
        """Each of the k votes is a sample."""
        return self.k
