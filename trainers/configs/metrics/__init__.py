"""Configs of metrics: what an evaluation measures of a model's responses."""

from typing import Annotated, Any, Union

from pydantic import AfterValidator, BeforeValidator, Field, GetPydanticSchema

from trainers.configs.metrics.base import MetricConfig
from trainers.configs.metrics.exact import ExactMatch
from trainers.configs.metrics.general import (
    JsonSchema,
    Perplexity,
    RegularExpression,
    RougeL,
    TokenF1,
    ToolCalls,
)
from trainers.configs.metrics.grader import GraderScore
from trainers.configs.metrics.judge import JudgePreference, JudgeScore
from trainers.configs.metrics.maths import (
    MajorityAtK,
    MathsExactMatch,
    MathsStrictMatch,
    MathVerify,
    PassAtK,
)
from trainers.configs.metrics.translation import TRANSLATION_CONFIGS

MAX_METRICS = 32

# To add a metric, add its config.
_CONFIGS = (
    MathsExactMatch, ExactMatch, MathsStrictMatch, MathVerify, PassAtK, MajorityAtK,
    TokenF1, RougeL, RegularExpression, JsonSchema, ToolCalls, Perplexity, JudgeScore, JudgePreference,
    GraderScore,
    *TRANSLATION_CONFIGS,
)  # fmt: skip
METRIC_KINDS = tuple(config.model_fields["metric"].default for config in _CONFIGS)


def _expand_name(value: Any) -> Any:
    """Return the config of a metric that is given by its kind alone."""
    return {"metric": value} if isinstance(value, str) else value


def _check_names(metrics: list[MetricConfig]) -> list[MetricConfig]:
    labels = [one.label for one in metrics]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise ValueError(f"two metrics are called {twice!r}: give one of them a `name`")
    return metrics


_UNION: Any = Annotated[Union[_CONFIGS], Field(discriminator="metric")]  # noqa: UP007
AnyMetric = Annotated[
    MetricConfig, GetPydanticSchema(lambda _, handler: handler(_UNION)), BeforeValidator(_expand_name)
]
Metrics = Annotated[
    list[AnyMetric],
    AfterValidator(_check_names),
    Field(
        min_length=1,
        max_length=MAX_METRICS,
        description="What to measure: the kind of a metric, such as `bleu`, or an object with its options, "
        'such as `{"metric": "bleu", "tokenizer": "ko-mecab"}`. The first is the main one.',
    ),
]

__all__ = [
    "MAX_METRICS",
    "METRIC_KINDS",
    "AnyMetric",
    "ExactMatch",
    "GraderScore",
    "JsonSchema",
    "JudgePreference",
    "JudgeScore",
    "MajorityAtK",
    "MathVerify",
    "MathsExactMatch",
    "MathsStrictMatch",
    "MetricConfig",
    "Metrics",
    "PassAtK",
    "Perplexity",
    "RegularExpression",
    "RougeL",
    "TokenF1",
    "ToolCalls",
]
