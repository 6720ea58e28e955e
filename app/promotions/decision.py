"""The decision on a step of a promotion: what was measured against each condition, with its limits.

A condition on a rate holds when the upper 95 % limit of the rate is within the bound, and is violated when
the lower one is above it; in between it is undecided, and the step continues. The limits hold at all looks
together, so that looking every second neither promotes nor rolls back by chance more often.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from serving.gateway.traffic.counts import TrafficCounts, count_slower, estimate_quantile
from trainers.configs.stages.serving.promote import JudgeCondition, PromotionConditions, PromotionStep
from trainers.statistics.event_rate import ALPHA, rate_limits

# Fewer failures may have one cause, whatever the number of requests.
MIN_FAILURES = 3
QUANTILE = 0.95
JUDGE_CONDITION = "judge"


class ConditionState(StrEnum):
    """Whether a condition holds, as far as the requests show."""

    holds = "holds"
    undecided = "undecided"
    violated = "violated"


@dataclass(frozen=True)
class Assessment:
    """A condition, what was measured, and whether it holds."""

    condition: str
    state: ConditionState
    value: float | None
    bound: float
    n: int
    limits_95: tuple[float, float] | None
    """Limits of the value; of a time, limits of the share of slower requests."""
    message: str

    def as_dict(self) -> dict[str, Any]:
        """Return the assessment as JSON."""
        return asdict(self)


class StepOutcome(StrEnum):
    """What follows from the assessments of a step."""

    wait = "wait"
    passed = "passed"
    violated = "violated"
    undecided = "undecided"


def assess(
    conditions: PromotionConditions, candidate: TrafficCounts, present: TrafficCounts
) -> list[Assessment]:
    """Return an assessment for each condition on the traffic.

    `candidate` are the requests to the new deployment in this step, `present` those to the others in all
    steps.
    """
    return list(_assess(conditions, candidate, present))


def assess_judgement(condition: JudgeCondition, judgement: dict[str, Any] | None) -> Assessment:
    """Return the assessment on a judgement; without one, the condition is undecided."""
    bound = condition.min_preference
    if judgement is None:
        return Assessment(
            JUDGE_CONDITION, ConditionState.undecided, None, bound, 0, None, "the judge has not ended yet"
        )
    value, n, interval = judgement["value"], judgement["n"], judgement["interval_95"]
    holds = interval is not None and interval[0] >= bound
    described = "unknown" if interval is None else f"{interval[0]:.3g} to {interval[1]:.3g}"
    return Assessment(
        JUDGE_CONDITION,
        ConditionState.holds if holds else ConditionState.violated,
        value,
        bound,
        n,
        None if interval is None else (interval[0], interval[1]),
        f"the judge's mean preference for the new deployment is {value:.3g} on {n} rows (95 % interval "
        f"{described}); its lower end must reach {bound:.3g}",
    )


def decide_step(
    step: PromotionStep, seconds: float, candidate: TrafficCounts, assessments: Sequence[Assessment]
) -> StepOutcome:
    """Decide how a step continues after some seconds; its values are those of `resolve_step`."""
    assert step.min_seconds is not None and step.min_requests is not None and step.max_seconds is not None
    states = {assessment.state for assessment in assessments}
    if ConditionState.violated in states:
        return StepOutcome.violated
    has_enough = seconds >= step.min_seconds and count_requests(candidate) >= step.min_requests
    if has_enough and ConditionState.undecided not in states:
        return StepOutcome.passed
    return StepOutcome.undecided if seconds >= step.max_seconds else StepOutcome.wait


def count_requests(counts: TrafficCounts) -> int:
    """Return the requests that a condition counts: those that the deployment could have served."""
    return counts.succeeded + counts.failed


def describe_measurement(candidate: TrafficCounts, present: TrafficCounts) -> dict[str, float]:
    """Return the measured values by name, for events and results; unknown ones are left out."""
    requests, others = count_requests(candidate), count_requests(present)
    values = {
        "requests": float(requests),
        "failed": float(candidate.failed),
        "rejected": float(candidate.rejected),
        "cancelled": float(candidate.cancelled),
        "error_rate": candidate.failed / requests if requests else None,
        "p95_seconds": estimate_quantile(candidate.seconds, QUANTILE),
        "p95_first_token_seconds": estimate_quantile(candidate.first_token_seconds, QUANTILE),
        "present_requests": float(others),
        "present_error_rate": present.failed / others if others else None,
        "present_p95_seconds": estimate_quantile(present.seconds, QUANTILE),
    }
    return {name: value for name, value in values.items() if value is not None}


def _assess(
    conditions: PromotionConditions, candidate: TrafficCounts, present: TrafficCounts
) -> Iterator[Assessment]:
    if conditions.max_error_rate is not None:
        yield _assess_errors(conditions.max_error_rate, candidate)
    if conditions.max_error_rate_increase is not None:
        yield _assess_increase(conditions.max_error_rate_increase, candidate, present)
    if conditions.max_p95_seconds is not None:
        times = candidate.seconds, candidate.cancelled_seconds
        slower, n = count_slower(*times, conditions.max_p95_seconds)
        value = estimate_quantile(candidate.seconds, QUANTILE)
        yield _assess_times("max_p95_seconds", conditions.max_p95_seconds, value, slower, n)
    if (bound := conditions.max_p95_first_token_seconds) is not None:
        slower, n = count_slower(
            candidate.first_token_seconds, candidate.cancelled_first_token_seconds, bound
        )
        value = estimate_quantile(candidate.first_token_seconds, QUANTILE)
        yield _assess_times("max_p95_first_token_seconds", bound, value, slower, n)


def _assess_errors(bound: float, candidate: TrafficCounts) -> Assessment:
    n = count_requests(candidate)
    limits = rate_limits(candidate.failed, n)
    return Assessment(
        "max_error_rate",
        _compare(limits, bound, candidate.failed),
        candidate.failed / n if n else None,
        bound,
        n,
        limits,
        f"{candidate.failed} of {n} requests failed{_describe(limits)}; at most {bound:.3g} may fail",
    )


def _assess_increase(bound: float, candidate: TrafficCounts, present: TrafficCounts) -> Assessment:
    n, others = count_requests(candidate), count_requests(present)
    # Each pair of limits at half of alpha: the difference of both then holds with 1 - alpha (Bonferroni).
    own = rate_limits(candidate.failed, n, ALPHA / 2)
    other = rate_limits(present.failed, others, ALPHA / 2)
    limits = own[0] - other[1], own[1] - other[0]
    value = candidate.failed / n - present.failed / others if n and others else None
    return Assessment(
        "max_error_rate_increase",
        _compare(limits, bound, candidate.failed),
        value,
        bound,
        n,
        limits,
        f"{candidate.failed} of {n} requests failed, and {present.failed} of {others} of the present "
        f"deployments: a difference of {'unknown size' if value is None else f'{value:+.3g}'}"
        f"{_describe(limits)}; at most {bound:+.3g} is allowed",
    )


def _assess_times(condition: str, bound: float, value: float | None, slower: int, n: int) -> Assessment:
    """Assess a 95th percentile: it is within the bound if at most 5 % of the requests are slower."""
    limits = rate_limits(slower, n)
    p95 = "unknown" if value is None else f"{value:.3g} s"
    return Assessment(
        condition,
        _compare(limits, 1 - QUANTILE, slower),
        value,
        bound,
        n,
        limits,
        f"the 95th percentile is {p95}; {slower} of {n} requests took longer than {bound:g} s"
        f"{_describe(limits)}, and at most 0.05 may",
    )


def _compare(limits: tuple[float, float], bound: float, events: int) -> ConditionState:
    lower, upper = limits
    # The share of 95 % is 0.05000000000000004 in binary.
    if upper <= bound + 1e-12:
        return ConditionState.holds
    if lower > bound and events >= MIN_FAILURES:
        return ConditionState.violated
    return ConditionState.undecided


def _describe(limits: tuple[float, float]) -> str:
    lower, upper = (round(limit, 4) for limit in limits)
    return f" (95 % limits {lower:.3g} to {upper:.3g})"
