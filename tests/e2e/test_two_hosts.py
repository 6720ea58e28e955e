"""A host that is cut off loses its run to another one, and nothing runs twice.

Method: two hosts in network namespaces, whose workers reach PostgreSQL, Redis and the API over a cable each.
The cable of the one that works is pulled. The stand-in program of the chaos driver writes its steps to a
ledger.
"""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.chaos import files
from tests.chaos.ledger import Entry, Kind, read_ledger
from tests.e2e.network import HostNetwork, host_network
from tests.e2e.platform import SHORT_LEASE, Platform, wait_until
from tests.services import PostgresServer, postgres, redis

KEY = f"ts_{'k' * 40}"
HOSTS = ("h1", "h2")


@pytest.fixture
def network() -> Iterator[HostNetwork]:
    with host_network(*HOSTS) as created:
        yield created


@contextmanager
def open_server(network: HostNetwork) -> Iterator[PostgresServer]:
    """Yield a server that also accepts connections from the hosts."""
    addresses = f"listen_addresses=127.0.0.1,{network.control_address}"
    # The server's user cannot read pytest's folders.
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as rules:
        rules.write("host all all 0.0.0.0/0 trust\n")
        rules.flush()
        Path(rules.name).chmod(0o644)
        with postgres("-c", addresses, "-c", f"hba_file={rules.name}") as started:
            yield started


@pytest.fixture
def server(network: HostNetwork) -> Iterator[PostgresServer]:
    with open_server(network) as started:
        yield started


@pytest.fixture
def platform(tmp_path: Path, network: HostNetwork, server: PostgresServer) -> Iterator[Platform]:
    """Yield an installation whose two workers are on hosts of their own."""
    files.write_base(tmp_path / "base")
    files.write_interpreter(tmp_path / "python", tmp_path / "ledger.jsonl")
    with ExitStack() as stack:
        broker = stack.enter_context(redis("secret", network.control_address))
        outside = {
            "TUNESMITH_DATABASE_URL": server.url.replace("127.0.0.1", network.control_address),
            "TUNESMITH_BROKER_URL": broker.url.replace("127.0.0.1", network.control_address),
            "TUNESMITH_ARTIFACTS_URL": f"file://{tmp_path / 'store'}",
            "TUNESMITH_TRAINER_PYTHON": str(tmp_path / "python"),
            "TUNESMITH_FIRST_ADMIN_KEY": KEY,
        }
        platform = Platform(tmp_path / "data", tmp_path / "base", **outside)
        stack.callback(platform.stop)
        assert platform.start(["-m", "app", "migrate"], "migrate").wait(60) == 0
        platform.client.headers["Authorization"] = f"Bearer {KEY}"
        platform.start_api("--host", "0.0.0.0")
        for host in HOSTS:
            data = {"TUNESMITH_DATA_DIR": str(tmp_path / host), **SHORT_LEASE}
            platform.start_worker(host, prefix=network.prefix(host), **data)
        upload = {"file": ("rows", files.write_rows())}
        created = platform.client.post("/api/v1/datasets", data={"name": "rows"}, files=upload)
        assert created.is_success, created.text
        yield platform


def submit(platform: Platform, steps: int) -> str:
    stage = {"stage": "sft", "base": "starter", "dataset": "rows", "max_steps": steps, "save_every_steps": 10}
    return platform.submit(stage)


def find_host(platform: Platform, run: Any) -> str:
    workers = {worker["id"]: worker["name"] for worker in platform.get("/workers")["items"]}
    return str(workers[run["worker_id"]])


def read_entries(folder: Path, run_id: str, attempt: int) -> list[Entry]:
    entries = read_ledger(folder / "ledger.jsonl")
    return [entry for entry in entries if (entry.run_id, entry.attempt) == (run_id, attempt)]


def read_lease_end(server: PostgresServer, run_id: str) -> datetime:
    with psycopg.connect(server.url) as connection:
        row = connection.execute("SELECT lease_expires_at FROM run WHERE id = %s", [run_id]).fetchone()
    assert row is not None
    end: datetime = row[0]
    return end


def test_the_run_of_a_host_that_is_cut_off_resumes_on_the_other_and_nothing_runs_twice(
    platform: Platform, network: HostNetwork, server: PostgresServer, tmp_path: Path
) -> None:
    job = submit(platform, steps=300)
    wait_until(lambda: platform.run(job)["status"] == "running", 120, "no host takes the run")
    other_job = submit(platform, steps=10)
    assert platform.wait_until_finished(other_job)["status"] == "succeeded"
    run_id = platform.run(job)["id"]
    wait_until(lambda: platform.get(f"/runs/{run_id}/checkpoints")["items"] != [], 120, "no checkpoint")
    cut_off = find_host(platform, platform.run(job))
    (other,) = set(HOSTS) - {cut_off}
    assert platform.run(other_job)["id"] in (platform.folder / f"{other}.log").read_text()

    network.pull_cable(cut_off)
    lease_end = read_lease_end(server, run_id)
    wait_until(lambda: platform.run(job)["attempt"] == 2, 120, "the run is not released")
    assert find_host(platform, platform.run(job)) == other
    first = read_entries(tmp_path, run_id, 1)
    assert first[-1].wall < lease_end.timestamp(), "the program outlived its lease"

    network.plug_cable(cut_off)
    assert platform.wait_until_finished(job)["status"] == "succeeded"
    wait_until(lambda: is_alive(platform, cut_off), 120, "the host does not return")
    assert platform.run(job)["attempt"] == 2
    second = read_entries(tmp_path, run_id, 2)
    (resumed,) = [entry for entry in second if entry.kind is Kind.resumed]
    assert resumed.intact and resumed.step >= 10
    assert read_entries(tmp_path, run_id, 1) == first, "the first attempt continued"
    assert first[-1].monotonic < second[0].monotonic and second[-1].kind is Kind.end
    assert [model["name"] for model in platform.get("/models")["items"] if model["run_id"] == run_id] != []


def is_alive(platform: Platform, name: str) -> bool:
    return any(worker["name"] == name and worker["alive"] for worker in platform.get("/workers")["items"])
