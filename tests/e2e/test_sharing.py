"""Deployments that share an engine.

Goal: deployments of one base run on one engine, sleep when it is full or idle, and wake on a request.
Method: real engines with the starter model, counted as processes of the worker.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from tests.e2e.platform import SHORT_LEASE, Platform, chat, find_engines, wait_until


@pytest.fixture
def openai(embedded: Platform) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{embedded.base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_base_and_its_adapters_share_one_engine_and_the_least_recently_used_sleeps(
    embedded: Platform, openai: OpenAI, adapters: dict[str, Path]
) -> None:
    worker = embedded.start_worker()
    models = {name: embedded.register_adapter(name, folder) for name, folder in adapters.items()}
    options: dict[str, Any] = {"options": {"max_adapters": 2}}
    base = embedded.deploy("base", **options)
    ids = {name: embedded.deploy(name, models[name], **options) for name in ("a", "b")}
    rows = [embedded.get(f"/deployments/{row_id}") for row_id in (base, *ids.values())]
    assert len({row["address"] for row in rows}) == len(find_engines(worker)) == 1
    completions = {}
    for name in ("b", "a"):
        completions[name] = chat(openai, name)
        embedded.wait_for_use(ids[name])
    assert len({chat(openai, "base"), *completions.values()}) == 3
    ids["c"] = embedded.deploy("c", models["c"], **options)
    assert embedded.get(f"/deployments/{ids['b']}")["status"] == "asleep"
    # The gateway loads its routes again after a second.
    names = {"base", "a", "b", "c"}
    wait_until(lambda: {model.id for model in openai.models.list()} == names, 120, "a model has no route")
    assert chat(openai, "b") == completions["b"]
    assert len(find_engines(worker)) == 1


def test_an_idle_engine_stops_and_a_request_starts_it_again(embedded: Platform, openai: OpenAI) -> None:
    worker = embedded.start_worker()
    # It is ready for this long only, which a busy test may not see.
    deployment = embedded.request_deployment("rare", idle_seconds=4)
    embedded.wait_for_status(deployment, "asleep")
    assert embedded.get(f"/deployments/{deployment}")["ready_at"] is not None
    wait_until(lambda: not find_engines(worker), 120, "the engine did not stop")
    assert chat(openai, "rare")
    assert len(find_engines(worker)) == 1


def test_the_worker_with_the_base_in_memory_has_precedence_and_another_takes_over_when_it_dies(
    platform: Platform, adapters: dict[str, Path]
) -> None:
    first = platform.start_worker("first", **SHORT_LEASE)
    ids = [platform.deploy("a", platform.register_adapter("a", adapters["a"]))]
    second = platform.start_worker("second")
    ids.append(platform.deploy("b", platform.register_adapter("b", adapters["b"])))
    assert len(find_engines(first)) == 1 and not find_engines(second)
    os.kill(first.pid, signal.SIGKILL)
    successor = platform.find_worker(second.pid)["id"]
    for deployment in ids:
        platform.wait_for_field(deployment, "worker_id", successor)
        platform.wait_for_status(deployment, "ready")
    assert len(find_engines(second)) == 1
    with OpenAI(base_url=f"{platform.base_url}/v1", api_key="none", max_retries=0) as client:
        assert chat(client, "a") != chat(client, "b")


def test_an_engine_that_is_healthy_but_generates_nothing_is_restarted(embedded: Platform) -> None:
    program = [sys.executable, "-m", "tests.e2e.hanging_engine", str(embedded.folder / "failing")]
    programs = json.dumps({"hf": program})
    embedded.start_worker(TUNESMITH_ENGINE_COMMANDS=programs, TUNESMITH_PROBE_SECONDS="0.5")
    deployment = embedded.deploy("hanging")
    (embedded.folder / "failing").touch()
    embedded.wait_for_field(deployment, "restart_count", 1)
    # The engine that is started now works, however late this is noticed.
    embedded.wait_for_status(deployment, "ready")
