"""One run trains on several hosts, and a host that is cut off ends it on all of them.

Method: hosts in network namespaces, whose workers reach PostgreSQL, Redis and the API, and whose processes
reach each other, over a cable each. The cable of one that trains is pulled.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.network import HostNetwork, host_network
from tests.e2e.platform import Platform, sft_stage, wait_until
from tests.e2e.test_two_hosts import KEY, open_server
from tests.services import redis

HOSTS = ("h1", "h2", "h3")
LEASE_SECONDS = 10.0
PROGRAM = "trainers.sft"


@pytest.fixture
def network() -> Iterator[HostNetwork]:
    with host_network(*HOSTS) as created:
        yield created


@pytest.fixture
def platform(tmp_path: Path, starter: Path, network: HostNetwork) -> Iterator[Platform]:
    """Yield an installation with a worker on each of three hosts."""
    with ExitStack() as stack:
        server = stack.enter_context(open_server(network))
        broker = stack.enter_context(redis("secret", network.control_address))
        outside = {
            "TUNESMITH_DATABASE_URL": server.url.replace("127.0.0.1", network.control_address),
            "TUNESMITH_BROKER_URL": broker.url.replace("127.0.0.1", network.control_address),
            "TUNESMITH_ARTIFACTS_URL": f"file://{tmp_path / 'store'}",
            "TUNESMITH_FIRST_ADMIN_KEY": KEY,
            "TUNESMITH_LEASE_SECONDS": str(LEASE_SECONDS),
            "TUNESMITH_HEARTBEAT_SECONDS": "1",
        }
        platform = Platform(tmp_path / "data", starter, **outside)
        stack.callback(platform.stop)
        assert platform.start(["-m", "app", "migrate"], "migrate").wait(60) == 0
        platform.client.headers["Authorization"] = f"Bearer {KEY}"
        platform.start_api("--host", "0.0.0.0")
        platform.upload_examples()
        for host in HOSTS:
            data = {"TUNESMITH_DATA_DIR": str(tmp_path / host)}
            platform.start_worker(host, prefix=network.prefix(host), **data)
        yield platform


def submit(platform: Platform, steps: int = 300) -> str:
    # Dropout draws from the random states of all processes.
    stage = sft_stage(nodes=2, max_steps=steps, save_every_steps=20, tuning={"dropout": 0.1})
    return platform.submit(stage, queue="cpu")


def list_members(platform: Platform, job: str) -> list[Any]:
    members: list[Any] = platform.run(job)["members"]
    return members


def find_programs(run_id: str, attempt: int) -> list[psutil.Process]:
    """Return the processes of all hosts that train this attempt."""
    folder = f"{run_id}/attempt-{attempt}"
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if PROGRAM in words and any(folder in word for word in words):
            found.append(process)
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_host_that_is_cut_off_ends_the_attempt_everywhere_and_the_run_resumes_on_others(
    platform: Platform, network: HostNetwork
) -> None:
    whole = submit(platform)
    assert platform.wait_until_finished(whole, 400)["status"] == "succeeded"
    job = submit(platform)
    run_id = platform.run(job)["id"]
    wait_until(lambda: platform.get(f"/runs/{run_id}/checkpoints")["items"] != [], 200, "no checkpoint")
    first = list_members(platform, job)
    assert [member["node_rank"] for member in first] == [0, 1]
    assert len({member["address"] for member in first}) == 2
    cut_off = first[1]["worker"]
    assert len(find_programs(run_id, 1)) >= 4, "a launcher and a process on each host"

    network.pull_cable(cut_off)
    pulled_at = time.monotonic()
    wait_until(lambda: find_programs(run_id, 1) == [], 60, "processes of the first attempt still run")
    assert platform.run(job)["status"] != "succeeded", "the cable was pulled too late"
    ended_after = time.monotonic() - pulled_at
    assert ended_after < LEASE_SECONDS + 2, f"the attempt ended after {ended_after:.1f} s"
    wait_until(lambda: platform.run(job)["attempt"] == 2, 60, lambda: f"{platform.run(job)}")
    second = [member["worker"] for member in list_members(platform, job)]
    assert cut_off not in second and len(second) == 2
    network.plug_cable(cut_off)
    finished = platform.wait_until_finished(job, 400)
    assert finished["status"] == "succeeded", finished
    assert platform.losses(run_id) == platform.losses(platform.run(whole)["id"])
    (released,) = [
        event["data"]["error"]
        for event in platform.events(run_id, "status")
        if event["data"]["status"] == "queued" and "error" in event["data"]
    ]
    assert released["code"] == "node_lost" and cut_off in released["message"]
    print(f"the attempt ended everywhere {ended_after:.1f} s after the cable was pulled")
