"""Reports of the tokens of keys."""

import asyncio
from typing import Any

import pytest

from serving.gateway.key_limits import token_use
from serving.gateway.key_limits.token_use import TokenRecorder
from tests.unit.serving.gateway.traffic.test_counts import closed


def test_a_report_that_the_end_of_the_process_interrupts_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_use, "REPORT_SECONDS", 0.0)

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
