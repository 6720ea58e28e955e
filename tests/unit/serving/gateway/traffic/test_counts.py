"""Counts of an alias's traffic, their histograms, and their JSON."""

import json
from typing import Any

import pytest

from serving.gateway.request_context import RequestContext, RequestRecorder
from serving.gateway.traffic.counts import TrafficCounts, count_slower, estimate_quantile, find_bucket


def closed(status: int, seconds: float = 0.5, **values: Any) -> RequestContext:
    context = RequestContext("POST", "/v1/completions", None, RequestRecorder(lambda contexts: None))
    context.status, context.seconds = status, seconds
    for name, value in values.items():
        setattr(context, name, value)
    return context


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, "succeeded"),
        (400, "rejected"),
        (404, "rejected"),
        (429, "failed"),
        (499, "cancelled"),
        (500, "failed"),
        (501, "rejected"),
        (502, "failed"),
        (504, "failed"),
    ],
)
def test_a_status_decides_the_outcome(status: int, outcome: str) -> None:
    counts = TrafficCounts()
    counts.observe(closed(status))
    outcomes = {name: getattr(counts, name) for name in ("succeeded", "failed", "rejected", "cancelled")}
    assert {name for name, count in outcomes.items() if count} == {outcome}


def test_a_stream_with_an_error_event_has_failed_whatever_its_status() -> None:
    counts = TrafficCounts()
    counts.observe(closed(200, streamed=True, stream_failed=True))
    assert (counts.failed, counts.succeeded, counts.seconds) == (1, 0, {})


def test_the_time_of_a_first_token_is_counted_of_streams_alone() -> None:
    counts = TrafficCounts()
    counts.observe(closed(200, first_byte_seconds=0.5))
    counts.observe(closed(200, streamed=True, first_byte_seconds=0.1))
    counts.observe(closed(499, 7.0, streamed=True))
    assert counts.first_token_seconds == {find_bucket(0.1): 1}
    assert counts.cancelled_first_token_seconds == {find_bucket(7.0): 1}


def test_a_time_is_known_to_two_and_a_half_percent() -> None:
    for seconds in (0.0123, 0.4, 1.0, 59.0):
        found = estimate_quantile({find_bucket(seconds): 1}, 0.95)
        assert found is not None and seconds <= found * 1.000001 <= seconds * 1.025
    assert estimate_quantile({}, 0.95) is None


def test_cancelled_requests_count_as_slower_only_if_they_waited_longer() -> None:
    completed = {find_bucket(0.5): 10, find_bucket(3.0): 2}
    cancelled = {find_bucket(0.2): 50, find_bucket(9.0): 4}
    assert count_slower(completed, cancelled, 1.0) == (6, 16)


def test_counts_survive_json_and_add_up() -> None:
    counts = TrafficCounts(succeeded=2, failed=1)
    counts.seconds[3] = 2
    read = TrafficCounts.from_json(json.loads(json.dumps(counts.to_json())))
    assert read == counts
    read.add(counts)
    assert (read.succeeded, read.seconds) == (4, {3: 4})
