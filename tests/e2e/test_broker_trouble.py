"""A worker whose broker is broken: it lives, reports the failure, and finds runs by polling."""

import re
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from redis import Redis

from tests import services
from tests.e2e.platform import Platform, short_stage, wait_until

WRONG_TYPE = ["SET", "cpu", "a key of the wrong type"]
DAMAGES: dict[str, list[list[str]]] = {
    "malformed messages": [["LPUSH", "cpu", item] for item in ("garbage{{{", "5", "[]", "{}", "[" * 100_000)],
    "a key of the wrong type": [["DEL", "cpu"], WRONG_TYPE],
    "no memory": [["CONFIG", "SET", "maxmemory", "1"]],
    "read-only": [["REPLICAOF", "127.0.0.1", "1"]],
    "another password": [["CONFIG", "SET", "requirepass", "other"], ["CLIENT", "KILL", "TYPE", "normal"]],
}


@pytest.fixture(scope="module")
def broker() -> Iterator[services.RedisServer]:
    with services.redis("secret") as server:
        yield server


@pytest.fixture(scope="module")
def platform(
    tmp_path_factory: pytest.TempPathFactory, starter: Path, broker: services.RedisServer
) -> Iterator[Platform]:
    platform = Platform(tmp_path_factory.mktemp("trouble") / "data", starter, TUNESMITH_BROKER_URL=broker.url)
    platform.start_api()
    platform.upload_examples()
    yield platform
    platform.stop()


def test_one_worker_survives_every_damage_and_executes_runs(
    platform: Platform, broker: services.RedisServer
) -> None:
    worker = platform.start_worker()
    wait_until(lambda: "ready." in read_log(platform), 120, "the worker is not ready")
    for damage in DAMAGES:
        with Redis.from_url(broker.url) as client:
            for command in DAMAGES[damage]:
                client.execute_command(*command)
        assert_works(platform, worker)
        if damage == "read-only":
            wait_until(lambda: has_problem(platform, worker), 60, "the problem is not reported")
        broker.stop()
        broker.start()
    lines = re.findall("broker (failed: [^;]*|works again)", read_log(platform))
    assert sum(line.startswith("failed") for line in lines) >= 2
    # However long it lasts, a failure is logged once, and again after another one or after the broker worked.
    assert [one for one, other in pairwise(lines) if one == other] == [], lines
    stop(worker)


@pytest.mark.parametrize("damage", ["another password", "nothing listens"])
def test_a_worker_starts_and_executes_runs(
    platform: Platform, broker: services.RedisServer, damage: str
) -> None:
    with Redis.from_url(broker.url) as client:
        for command in DAMAGES.get(damage, []):
            client.execute_command(*command)
    broker_is_down = damage not in DAMAGES
    if broker_is_down:
        broker.stop()
    worker = platform.start_worker(damage)
    assert_works(platform, worker)
    stop(worker)
    if broker_is_down:
        broker.start()


def assert_works(platform: Platform, worker: "subprocess.Popen[bytes]") -> None:
    """Execute two jobs in a row: the first may have been notified before the damage took effect."""
    for _ in range(2):
        job = platform.wait_until_finished(platform.submit(short_stage()), 120)
        assert (job["status"], worker.poll()) == ("succeeded", None), read_log(platform)


def has_problem(platform: Platform, worker: "subprocess.Popen[bytes]") -> bool:
    problems = platform.find_worker(worker.pid)["problems"]
    return any("ReadOnlyError" in problem for problem in problems)


def stop(worker: "subprocess.Popen[bytes]") -> None:
    worker.terminate()
    assert worker.wait(60) == 0


def read_log(platform: Platform) -> str:
    return (platform.folder / "worker.log").read_text()
