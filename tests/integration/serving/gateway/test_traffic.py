"""What a gateway counts of a measured route: each outcome of an engine, and attempts before a retry."""

from datetime import UTC, datetime
from typing import Any

import pytest
from fastapi.testclient import TestClient

from serving.gateway.gateway import Gateway
from serving.gateway.routes import Route, StaticRoutingTable, Target
from tests.integration.serving.fake_engine import FakeEngine
from tests.integration.serving.gateway.test_mounted import mount
from tests.services import free_port

NOW = datetime(2026, 11, 26, tzinfo=UTC)


class RecordingRoutingTable(StaticRoutingTable):
    """Routes of an alias at version 2, and the last counts reported for each of its deployments."""

    def __init__(self, *targets: Target) -> None:
        super().__init__([Route("prod", targets, NOW, measured_version=2)])
        self.counts: dict[str, dict[str, Any]] = {}

    async def record_traffic(self, reporter: str, rows: list[dict[str, Any]]) -> bool:
        assert {(row["alias"], row["version"]) for row in rows} == {("prod", 2)}
        self.counts |= {row["deployment_id"]: row["counts"] for row in rows}
        return True


def outcomes(counts: dict[str, Any]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if isinstance(count, int) and count}


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("plain", {"succeeded": 1}),
        ("slow", {"succeeded": 1}),
        ("broken", {"failed": 1}),
        ("busy", {"failed": 1}),
        ("unknown-path", {"rejected": 1}),
        ("cut", {"failed": 1}),
        ("error-mid-stream", {"failed": 1}),
        ("dead", {"failed": 1}),
    ],
)
def test_each_outcome_of_an_engine_is_counted(model: str, expected: dict[str, int]) -> None:
    fake_engine = FakeEngine()
    routes = RecordingRoutingTable(Target("deployment_a", fake_engine.url, model))
    with TestClient(mount(Gateway(routes))) as client:
        client.post("/v1/chat/completions", json={"model": "prod", "stream": model == "slow"})
    fake_engine.close()
    counts = routes.counts["deployment_a"]
    assert outcomes(counts) == expected
    assert bool(counts["first_token_seconds"]) is (model == "slow")
    assert bool(counts["seconds"]) is ("succeeded" in expected)


def test_an_alias_without_a_deployment_counts_nothing() -> None:
    routes = RecordingRoutingTable(Target("", "", ""))
    with TestClient(mount(Gateway(routes))) as client:
        assert client.post("/v1/chat/completions", json={"model": "prod"}).status_code == 503
    assert routes.counts == {}


def test_an_attempt_that_another_target_takes_over_has_failed() -> None:
    fake_engine = FakeEngine()
    gone = Target("deployment_gone", f"http://127.0.0.1:{free_port()}", "plain", share=1.0)
    routes = RecordingRoutingTable(gone, Target("deployment_b", fake_engine.url, "plain", share=1e-12))
    with TestClient(mount(Gateway(routes))) as client:
        assert client.post("/v1/chat/completions", json={"model": "prod"}).status_code == 200
    fake_engine.close()
    assert outcomes(routes.counts["deployment_gone"]) == {"failed": 1}
    assert outcomes(routes.counts["deployment_b"]) == {"succeeded": 1}
