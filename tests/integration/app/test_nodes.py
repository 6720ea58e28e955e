"""Stages on several hosts when a job is posted: what is refused, and what such a run waits for."""

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from app.settings import Settings
from app.tables import Run, RunStatus

STAGE = {"stage": "sft", "base": "org/base", "dataset": "rows", "queue": "cpu", "nodes": 2}
Make = Callable[..., Any]


def plan(client: TestClient, **values: Any) -> Any:
    body = {"name": "job", "stages": [STAGE | values]}
    return client.post("/api/v1/jobs/dry-run", json=body).json()


def as_team(settings: Settings) -> None:
    # Nothing listens there: a dry run sends no notification.
    settings.broker_url = SecretStr("redis://127.0.0.1:1/0")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_an_installation_of_one_host_refuses_several(client: TestClient, make_dataset: Make) -> None:
    make_dataset("rows")
    (field,) = plan(client)["error"]["fields"]
    assert field["field"] == "stages.0.nodes"
    assert "Several hosts need PostgreSQL and Redis" in field["message"]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_hosts_that_cannot_be_had_are_refused_with_the_reason(
    client: TestClient, settings: Settings, make_dataset: Make
) -> None:
    make_dataset("rows")
    as_team(settings)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"nodes": 9, "batch_size": 18}, "allows at most 8"),
        ({"queue": "mlx"}, "MLX trains on one host"),
        ({"parallelism": "zero3"}, "parallelism zero3 saves checkpoints in parts on each host; use fsdp2"),
        ({"batch_size": 3}, "is not a multiple of devices 1 times nodes 2"),
    ]
    for values, expected in cases:
        answer = plan(client, **values)
        assert expected in str(answer["error"]["fields"]), (values, answer)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_run_reports_which_workers_it_waits_for_and_which_it_has(
    client: TestClient, settings: Settings, make_dataset: Make, make_worker: Make, make_job: Make
) -> None:
    make_dataset("rows")
    as_team(settings)
    make_worker(name="a", node_address="10.0.0.1")
    make_worker(name="b")
    waiting = plan(client)["stages"][0]["waiting_for"]
    assert waiting.startswith("It needs 2 workers on queue cpu; 1 is alive. 1 more has no address")
    make_worker(name="c", node_address="10.0.0.3")
    assert plan(client)["stages"][0]["waiting_for"] is None
    (run,) = make_job(RunStatus.queued, nodes=2)
    assert read(client, run)["waiting_for"] is None
    (busy,) = make_job(RunStatus.queued, nodes=3)
    assert "It needs 3 workers on queue cpu; 2 are alive" in read(client, busy)["waiting_for"]


def read(client: TestClient, run: Run) -> Any:
    return client.get(f"/api/v1/runs/{run.id}").json()
