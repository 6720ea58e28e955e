"""The decision on a step of a promotion, from counts alone."""

from collections import Counter
from typing import Any

import pytest

from app.promotions.decision import ConditionState, StepOutcome, assess, decide_step
from serving.gateway.traffic.counts import TrafficCounts, find_bucket
from trainers.configs.stages.serving.promote import PromotionConditions, PromotionStep

STEP = PromotionStep(share=0.1, min_seconds=10, min_requests=50, max_seconds=100)
NONE = TrafficCounts()


def served(succeeded: int, failed: int = 0, **values: Any) -> TrafficCounts:
    return TrafficCounts(succeeded=succeeded, failed=failed, **values)


def state(conditions: dict[str, Any], candidate: TrafficCounts, present: TrafficCounts = NONE) -> str:
    [assessment] = assess(PromotionConditions.model_validate(conditions), candidate, present)
    return assessment.state


@pytest.mark.parametrize(
    ("succeeded", "failed", "expected"),
    [(0, 0, "undecided"), (20, 0, "undecided"), (100, 0, "holds"), (10, 8, "violated"), (0, 2, "undecided")],
)
def test_an_error_rate_is_decided_by_its_limits(succeeded: int, failed: int, expected: str) -> None:
    assert state({"max_error_rate": 0.05}, served(succeeded, failed)) == expected


def test_an_increase_counts_what_fails_on_the_present_deployment_too() -> None:
    condition = {"max_error_rate_increase": 0.1}
    candidate = served(800, 200)
    assert state(condition, candidate, served(8000, 2000)) == "holds"
    assert state(condition, candidate, served(10_000, 0)) == "violated"
    assert state(condition, candidate, NONE) == "undecided"


def test_a_percentile_is_decided_by_the_share_of_slower_requests() -> None:
    fast, slow = find_bucket(0.1), find_bucket(2.0)
    condition = {"max_p95_seconds": 1.0}
    assert state(condition, served(100, seconds=Counter({fast: 100}))) == "holds"
    assert state(condition, served(40, seconds=Counter({fast: 20, slow: 20}))) == "violated"
    cancelled = served(20, seconds=Counter({fast: 20}), cancelled_seconds=Counter({slow: 20, fast: 900}))
    assert state(condition, cancelled) == "violated"


def test_first_tokens_count_of_streams_alone() -> None:
    condition = {"max_p95_first_token_seconds": 1.0}
    assert state(condition, served(500, seconds=Counter({0: 500}))) == "undecided"
    assert state(condition, served(500, first_token_seconds=Counter({0: 500}))) == "holds"


@pytest.mark.parametrize(
    ("seconds", "succeeded", "failed", "expected"),
    [
        (5, 500, 0, "wait"),
        (20, 30, 0, "wait"),
        (20, 500, 0, "passed"),
        (5, 5, 50, "violated"),
        (100, 30, 0, "undecided"),
    ],
)
def test_a_step_ends_when_time_requests_and_conditions_allow(
    seconds: float, succeeded: int, failed: int, expected: str
) -> None:
    candidate = served(succeeded, failed)
    assessments = assess(PromotionConditions(max_error_rate=0.05), candidate, NONE)
    assert decide_step(STEP, seconds, candidate, assessments) == StepOutcome(expected)


def test_the_message_has_value_bound_and_count() -> None:
    [assessment] = assess(PromotionConditions(max_error_rate=0.05), served(10, 10), NONE)
    assert assessment.state is ConditionState.violated and (assessment.value, assessment.n) == (0.5, 20)
    assert "10 of 20 requests failed (95 % limits" in assessment.message and "0.05" in assessment.message
    [assessment] = assess(PromotionConditions(max_error_rate=0.05), served(118, 1), NONE)
    assert "1 of 119 requests failed (95 % limits 0 to 0.0622)" in assessment.message
