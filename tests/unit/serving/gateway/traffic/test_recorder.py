"""Reports of an alias's traffic: whole counts, repeated until they are accepted."""

import asyncio
from typing import Any

import pytest

from serving.gateway.reports import changes
from serving.gateway.traffic.recorder import TrafficRecorder
from tests.unit.serving.gateway.traffic.test_counts import closed

KEY = ("prod", 2, "deployment_a")
Reports = list[tuple[str, list[dict[str, Any]]]]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "REPORT_SECONDS", 0.01)


def record(results: list[bool], requests: int, wait_for: int) -> Reports:
    """Return the reports of so many requests, of which the first are accepted or not."""
    reports: Reports = []

    async def report(reporter: str, rows: list[dict[str, Any]]) -> bool:
        reports.append((reporter, rows))
        return results.pop(0) if results else True

    async def run() -> None:
        traffic = TrafficRecorder(report)
        for _ in range(requests):
            traffic.observe(closed(200, traffic_key=KEY))
        while len(reports) < wait_for:
            await asyncio.sleep(0.005)
        traffic.observe(closed(500, traffic_key=KEY))
        await traffic.aclose()

    asyncio.run(run())
    return reports


def test_a_report_contains_all_requests_since_the_start() -> None:
    (first, [before]), (second, [after]) = record([], 3, wait_for=1)
    assert first == second and first.startswith("gateway_")
    assert {"alias": "prod", "version": 2, "deployment_id": "deployment_a"}.items() <= before.items()
    assert (before["counts"]["succeeded"], before["counts"]["failed"]) == (3, 0)
    assert (after["counts"]["succeeded"], after["counts"]["failed"]) == (3, 1)


def test_a_report_that_was_not_accepted_is_repeated() -> None:
    reports = record([False, False, True], 1, wait_for=3)
    assert [rows[0]["counts"]["succeeded"] for _, rows in reports] == [1, 1, 1, 1]


def test_a_request_of_a_route_that_is_not_measured_is_not_counted() -> None:
    async def run() -> Reports:
        reports: Reports = []

        async def report(reporter: str, rows: list[dict[str, Any]]) -> bool:
            reports.append((reporter, rows))
            return True

        traffic = TrafficRecorder(report)
        traffic.observe(closed(200))
        await traffic.aclose()
        return reports

    assert asyncio.run(run()) == []
