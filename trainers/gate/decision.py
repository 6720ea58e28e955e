"""The decision of a gate: the values that it compares, the limit, and whether it is met."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from trainers.comparison.common_rows import list_common_clusters, load_common_rows
from trainers.comparison.compared_values import list_common_metrics, load_values
from trainers.comparison.stored_evaluation import StoredEvaluation, load_evaluation
from trainers.comparison.warnings import list_warnings
from trainers.configs import EvaluationFolder, GateBasis, GateConfig
from trainers.configs.stages.evaluate import MODEL
from trainers.evaluation.results import Interval, Score
from trainers.runtime.errors import ConfigInvalid
from trainers.statistics.comparison import compare
from trainers.statistics.margin import check_margin

LIMIT_DIGITS = 4


class GateDecision(BaseModel):
    """The result of a gate, and the details of the error of one that is not met."""

    stage: Literal["gate"] = "gate"
    met: bool = Field(description="Whether the condition holds.")
    metric: str = Field(description="Name of the metric.")
    higher_is_better: bool = Field(description="Direction of the metric.")
    on: GateBasis = Field(description="What decides: the value, the bound of its interval, or a test.")
    n: int = Field(description="Rows that the decision is based on.")
    value: float = Field(description="The model's value on these rows.")
    other_value: float | None = Field(None, description="The value of the other model on these rows.")
    difference: float | None = Field(None, description="Value of the model minus that of the other one.")
    interval_95: Interval | None = Field(None, description="Interval of the value or of the difference.")
    p_value: float | None = Field(None, description="One-sided probability of such a difference.")
    limit: float = Field(description="What the value, the difference or the bound is compared with.")
    method: str | None = Field(None, description="Name of the test and of the interval.")
    message: str = Field(description="The decision as a sentence.")
    warnings: list[str] = Field(default_factory=list, description="What weakens the decision.")


def decide(config: GateConfig) -> GateDecision:
    """Return the decision of a gate on folders; raises ConfigInvalid and EvaluationsDiffer."""
    evaluation = load_evaluation(_require_folder(config.evaluation))
    score = _find_score(evaluation, config.metric)
    if config.on is GateBasis.sequential:
        return _decide_sequential(config, evaluation, score)
    if isinstance(config.against, float | int):
        return _decide_constant(config, score, float(config.against))
    other = load_evaluation(_require_folder(config.against))
    return _decide_pair(config, evaluation, other, score)


def _require_folder(reference: Any) -> EvaluationFolder:
    if not isinstance(reference, EvaluationFolder):
        raise ConfigInvalid(
            f"The evaluation {reference} is one that only a job can resolve.",
            'Name a folder: {"folder": "runs/…/evaluation", "role": "model"}.',
        )
    return reference


def _find_score(evaluation: StoredEvaluation, metric: str | None) -> Score:
    scores = evaluation.scores
    if metric is None:
        return next(iter(scores.values()))
    if metric not in scores:
        raise ConfigInvalid(
            f"The evaluation does not measure {metric!r}; it measures {', '.join(scores)}.",
            "Choose one of these as `metric`.",
        )
    return scores[metric]


def _decide_constant(config: GateConfig, score: Score, constant: float) -> GateDecision:
    """Compare a model's value, or the worse end of its interval, with a constant."""
    higher = score.higher_is_better
    limit = constant - config.margin if higher else constant + config.margin
    decisive = score.value if config.on is GateBasis.value else _worse_end(score.interval_95, higher)
    # A value of no rows is 0 by convention, which decides nothing.
    met = score.n > 0 and decisive is not None and (decisive >= limit if higher else decisive <= limit)
    subject = "" if config.on is GateBasis.value else f"; the worse end of its {_describe(score.interval_95)}"
    return GateDecision(
        met=met,
        metric=score.metric,
        higher_is_better=higher,
        on=config.on,
        n=score.n,
        value=score.value,
        interval_95=score.interval_95,
        limit=limit,
        message=f"{score.metric} of {config.role} is {score.value:.4g} with n = {score.n:,}{subject} "
        f"{_require(higher, limit)}.",
    )


def _decide_sequential(config: GateConfig, evaluation: StoredEvaluation, score: Score) -> GateDecision:
    """Return the decision of the evaluation's own early stop; raises ConfigInvalid if it has another one."""
    stop, higher = evaluation.result.early_stop, score.higher_is_better
    wanted = (score.metric, config.against, config.margin, config.role)
    if stop is None or wanted != (stop.metric, stop.against, stop.margin, MODEL):
        found = "none" if stop is None else f"{stop.metric} against {stop.against}, margin {stop.margin:g}"
        raise ConfigInvalid(
            f"The gate decides on an early stop by {score.metric} of {config.role} against {config.against}, "
            f"margin {config.margin:g}; that of the evaluation is: {found}.",
            "Repeat metric, against and margin of `early_stop`.",
        )
    other = next((one for one in evaluation.result.models if one.role == stop.against), None)
    theirs = {one.metric: one.value for one in other.scores} if other is not None else {}
    return GateDecision(
        met=stop.met,
        metric=score.metric,
        higher_is_better=higher,
        on=config.on,
        n=stop.n,
        value=score.value,
        other_value=theirs.get(score.metric),
        difference=stop.difference,
        p_value=stop.p_value,
        limit=0.0 - config.margin if higher else config.margin,
        method="sequential test by betting",
        message=f"{score.metric} of {config.role} against {stop.against} after {stop.n:,} of {stop.rows:,} "
        f"rows: {stop.outcome}; the evidence that it is worse by less than {stop.margin:g} reached "
        f"{stop.evidence:.3g} and must reach 20.",
    )


def _decide_pair(
    config: GateConfig, evaluation: StoredEvaluation, other: StoredEvaluation, score: Score
) -> GateDecision:
    """Compare the models on the rows that both evaluations have."""
    pair, metric, higher = [evaluation, other], score.metric, score.higher_is_better
    metrics = list_common_metrics(pair, [metric])
    common = load_common_rows(pair)
    values = {each.label: load_values(each, common, metrics) for each in pair}
    if not all(metric in own for own in values.values()):
        raise ConfigInvalid(f"{metric} cannot be computed on the common rows.", "Choose another metric.")
    own, theirs = values[evaluation.label][metric], values[other.label][metric]
    _, clusters = list_common_clusters(pair, common)
    difference = compare(own, theirs, clusters=clusters)
    limit = 0.0 - config.margin if higher else config.margin
    p_value: float | None = None
    basis = f"95 % interval {_describe(difference.interval_95)}"
    if config.on is GateBasis.value:
        met = difference.n > 0 and (
            difference.difference >= limit if higher else difference.difference <= limit
        )
        requirement = f"the difference {_require(higher, limit)}"
    elif config.on is GateBasis.bound:
        worse = _worse_end(difference.interval_95, higher)
        # The interval contains the differences that the rows are compatible with, its ends included.
        met = worse is not None and (worse > limit if higher else worse < limit)
        requirement = f"the worse end {_require(higher, limit, strict=True)}"
    else:
        test = check_margin(own, theirs, margin=config.margin, clusters=clusters)
        met, p_value = test.met, test.p_value
        side = "at most" if higher else "at least"
        requirement = f"p = {p_value:.3g} of a true difference {side} {_round(limit)} must be at most 0.05"
    return GateDecision(
        met=met,
        metric=metric,
        higher_is_better=higher,
        on=config.on,
        n=difference.n,
        value=own.value,
        other_value=theirs.value,
        difference=difference.difference,
        interval_95=difference.interval_95,
        p_value=p_value,
        limit=limit,
        method=difference.method,
        message=f"{metric} of {evaluation.model.role} is {own.value:.4g}, of {other.model.role} "
        f"{theirs.value:.4g}: a difference of {difference.difference:+.4g} with n = {difference.n:,} "
        f"({basis}); {requirement}.",
        warnings=list_warnings(pair, common, values, metrics),
    )


def _worse_end(interval: Interval | None, higher_is_better: bool) -> float | None:
    return interval and interval[0 if higher_is_better else 1]


def _require(higher_is_better: bool, limit: float, *, strict: bool = False) -> str:
    comparison = "above" if strict else "at least"
    if not higher_is_better:
        comparison = "below" if strict else "at most"
    return f"must be {comparison} {_round(limit)}"


def _describe(interval: Interval | None) -> str:
    return "unknown" if interval is None else f"{_round(interval[0])} to {_round(interval[1])}"


def _round(value: float) -> str:
    return f"{round(value, LIMIT_DIGITS):g}"
