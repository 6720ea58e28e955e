"""Reports of the tokens of keys."""

import asyncio
from typing import Any

import pytest

from serving.gateway.key_limits.token_use import TokenRecorder
from serving.gateway.rate_limits import AuthorizedClient
from serving.gateway.reports import changes
from tests.unit.serving.gateway.traffic.test_counts import closed


@pytest.mark.parametrize(("totals", "used"), [({}, 7), ({"key_a": 100}, 100)], ids=["refused", "accepted"])
def test_what_a_service_refuses_to_add_up_is_counted_here(totals: dict[str, int], used: int) -> None:
    async def run() -> int:
        async def report(reporter: str, rows: list[dict[str, Any]]) -> dict[str, int]:
            return totals

        tokens = TokenRecorder(report)
        tokens.observe(closed(200, key_id="key_a", estimated_tokens=7))
        await tokens.aclose()
        return tokens.used_today(AuthorizedClient("key_a", tokens_per_day=1000))

    assert asyncio.run(run()) == used


def test_a_report_that_the_end_of_the_process_interrupts_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "REPORT_SECONDS", 0.0)

    async def run() -> list[dict[str, Any]]:
        reports: list[dict[str, Any]] = []
        begun = asyncio.Event()

        async def report(reporter: str, rows: list[dict[str, Any]]) -> dict[str, int]:
            if not begun.is_set():
                begun.set()
                await asyncio.sleep(60)
            reports.extend(rows)
            return {}

        tokens = TokenRecorder(report)
        tokens.observe(closed(200, key_id="key_a", estimated_tokens=7))
        await begun.wait()
        await tokens.aclose()
        return reports

    assert [(row["key_id"], row["tokens"]) for row in asyncio.run(run())] == [("key_a", 7)]
