"""Deployments of one base share an engine, sleep when it is full or idle, and wake when they are asked."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from tests.e2e.platform import Platform, ask, engines_of, until


@pytest.fixture
def openai(embedded: Platform) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{embedded.base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_base_and_its_adapters_share_one_engine_and_the_least_used_makes_room(
    embedded: Platform, openai: OpenAI, adapters: dict[str, Path]
) -> None:
    worker = embedded.start_worker()
    models = {name: embedded.register(name, folder) for name, folder in adapters.items()}
    options = {"options": {"max_adapters": 2}}
    base = embedded.deploy("base", **options)
    ids = {name: embedded.deploy(name, models[name], **options) for name in ("a", "b")}
    shown = [embedded.get(f"/deployments/{one}") for one in (base, *ids.values())]
    assert len({one["address"] for one in shown}) == len(engines_of(worker)) == 1
    answers = {}
    for name in ("b", "a"):
        answers[name] = ask(openai, name)
        embedded.await_use(ids[name])
    assert len({ask(openai, "base"), *answers.values()}) == 3
    ids["c"] = embedded.deploy("c", models["c"], **options)
    assert embedded.get(f"/deployments/{ids['b']}")["status"] == "asleep"
    assert {model.id for model in openai.models.list()} == {"base", "a", "b", "c"}
    assert ask(openai, "b") == answers["b"]
    assert len(engines_of(worker)) == 1


def test_an_idle_engine_stops_and_a_request_brings_it_back(embedded: Platform, openai: OpenAI) -> None:
    worker = embedded.start_worker()
    deployment = embedded.deploy("rare", idle_seconds=1)
    embedded.await_status(deployment, "asleep")
    until(lambda: not engines_of(worker), 120, "the engine does not stop")
    assert ask(openai, "rare")
    assert len(engines_of(worker)) == 1


def test_a_worker_with_the_base_in_memory_goes_first_and_another_inherits_all(
    platform: Platform, adapters: dict[str, Path]
) -> None:
    first = platform.start_worker("first")
    ids = [platform.deploy("a", platform.register("a", adapters["a"]))]
    second = platform.start_worker("second")
    ids.append(platform.deploy("b", platform.register("b", adapters["b"])))
    assert len(engines_of(first)) == 1 and not engines_of(second)
    os.kill(first.pid, signal.SIGKILL)
    heir = platform.worker_of(second.pid)["id"]
    for deployment in ids:
        platform.await_field(deployment, "worker_id", heir)
        platform.await_status(deployment, "ready")
    assert len(engines_of(second)) == 1
    with OpenAI(base_url=f"{platform.base_url}/v1", api_key="none", max_retries=0) as client:
        assert ask(client, "a") != ask(client, "b")


def test_an_engine_that_lies_about_its_health_is_started_again(embedded: Platform) -> None:
    program = [sys.executable, "-m", "tests.e2e.lying_engine", str(embedded.folder / "lying")]
    programs = json.dumps({"hf": program})
    embedded.start_worker(TUNESMITH_ENGINE_COMMANDS=programs, TUNESMITH_PROBE_SECONDS="0.5")
    deployment = embedded.deploy("liar")
    (embedded.folder / "lying").touch()
    embedded.await_field(deployment, "restart_count", 1)
    (embedded.folder / "lying").unlink()
    embedded.await_status(deployment, "ready")
