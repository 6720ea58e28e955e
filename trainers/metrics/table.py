"""The table of metrics: which class measures what a config asks for."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from trainers.configs.metrics import (
    ExactMatch,
    GraderScore,
    JsonSchema,
    JudgePreference,
    JudgeScore,
    MajorityAtK,
    MathsExactMatch,
    MathsStrictMatch,
    MathVerify,
    MetricConfig,
    PassAtK,
    Perplexity,
    RegularExpression,
    RougeL,
    TokenF1,
    ToolCalls,
)
from trainers.configs.metrics.translation import (
    Bleu,
    Chrf,
    ChrfPlusPlus,
    Comet,
    LengthRatio,
    NumbersKept,
    Ter,
    WrongLanguage,
)
from trainers.metrics.exact import ExactMatchMetric
from trainers.metrics.general.overlap import RougeLMetric, TokenF1Metric
from trainers.metrics.general.patterns import JsonSchemaMetric, RegularExpressionMetric
from trainers.metrics.general.perplexity import PerplexityMetric
from trainers.metrics.general.tool_calls import ToolCallsMetric
from trainers.metrics.graded import GraderMetric
from trainers.metrics.judge.metrics import JudgePreferenceMetric, JudgeScoreMetric
from trainers.metrics.maths.answers import MathsExactMatchMetric, MathsStrictMatchMetric
from trainers.metrics.maths.samples import MajorityAtKMetric, PassAtKMetric
from trainers.metrics.maths.verification import MathVerifyMetric
from trainers.metrics.metric import EvaluatedRow, HostMetric, Metric, MetricValues, ModelContext, ModelMetric
from trainers.metrics.translation.comet import CometMetric
from trainers.metrics.translation.metrics import BleuMetric, ChrfMetric, TerMetric
from trainers.metrics.translation.text_metrics import (
    LengthRatioMetric,
    NumbersKeptMetric,
    WrongLanguageMetric,
)

# To add a metric, add a line. A module that imports a large package imports it in the class.
_METRICS: dict[type[MetricConfig], Callable[[Any], Metric]] = {
    ExactMatch: ExactMatchMetric,
    MathsExactMatch: MathsExactMatchMetric,
    MathsStrictMatch: MathsStrictMatchMetric,
    MathVerify: MathVerifyMetric,
    PassAtK: PassAtKMetric,
    MajorityAtK: MajorityAtKMetric,
    TokenF1: TokenF1Metric,
    RougeL: RougeLMetric,
    RegularExpression: RegularExpressionMetric,
    JsonSchema: JsonSchemaMetric,
    ToolCalls: ToolCallsMetric,
    Perplexity: PerplexityMetric,
    Bleu: BleuMetric,
    Chrf: ChrfMetric,
    ChrfPlusPlus: ChrfMetric,
    Ter: TerMetric,
    LengthRatio: LengthRatioMetric,
    WrongLanguage: WrongLanguageMetric,
    NumbersKept: NumbersKeptMetric,
    JudgeScore: JudgeScoreMetric,
    JudgePreference: JudgePreferenceMetric,
    GraderScore: GraderMetric,
    Comet: CometMetric,
}


def make_metric(config: MetricConfig) -> Metric:
    """Return the metric of a config."""
    return _METRICS[type(config)](config)


def check_host(configs: Sequence[MetricConfig], rows: Sequence[EvaluatedRow]) -> None:
    """Raise a ProgramError if this host cannot compute one of the metrics; the rows have no responses."""
    for metric in map(make_metric, configs):
        if isinstance(metric, HostMetric):
            metric.check_host(rows)


def score_rows(config: MetricConfig, rows: Sequence[EvaluatedRow], context: ModelContext) -> MetricValues:
    """Score the responses of one model, on the scale of the metric."""
    metric = make_metric(config)
    values = metric.score_model(rows, context) if isinstance(metric, ModelMetric) else metric.score(rows)
    return set_scale(values, config)


def set_scale(values: MetricValues, config: MetricConfig) -> MetricValues:
    """Return the values with the ends of the metric's scale."""
    scale = config.scale
    return replace(values, lowest=scale.low, highest=math.inf if scale.high is None else scale.high)
