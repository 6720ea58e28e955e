"""Workers of a run on several hosts are killed, stopped or paused: all nodes end and resume together.

Method: workers on one host, each with a data directory of its own. The stand-in program of the chaos driver
takes the place of torch's launcher on every node, and writes its steps to a ledger.
"""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import files
from tests.chaos.ledger import Entry, Kind, read_ledger
from tests.e2e.conftest import create_database
from tests.e2e.platform import Platform, wait_until
from tests.services import RedisServer

NAMES = ("w1", "w2", "w3")


class Group(Platform):
    """An installation with three workers that could each be a node."""

    workers: dict[str, "subprocess.Popen[bytes]"]

    def submit_nodes(self, steps: int = 150) -> str:
        values = {"max_steps": steps, "save_every_steps": 10, "nodes": 2}
        return self.submit({"stage": "sft", "base": "starter", "dataset": "rows", **values}, queue="cpu")

    def names(self, job: str) -> list[str]:
        return [member["worker"] for member in self.run(job)["members"]]

    def entries(self, job: str, attempt: int) -> list[Entry]:
        run_id = self.run(job)["id"]
        found = read_ledger(self.folder.parent / "ledger.jsonl")
        return [entry for entry in found if (entry.run_id, entry.attempt) == (run_id, attempt)]

    def wait_for_checkpoint(self, job: str) -> None:
        run_id = self.run(job)["id"]
        wait_until(lambda: self.get(f"/runs/{run_id}/checkpoints")["items"] != [], 90, "no checkpoint")

    def errors(self, job: str) -> list[Any]:
        events = self.events(self.run(job)["id"], "status")
        return [event["data"]["error"] for event in events if event["data"].get("error")]


@pytest.fixture
def group(tmp_path: Path, postgres: str, broker: RedisServer) -> Iterator[Group]:
    files.write_base(tmp_path / "base")
    files.write_interpreter(tmp_path / "python", tmp_path / "ledger.jsonl")
    create_database(postgres, tmp_path.name, "template")
    settings = {
        "TUNESMITH_DATABASE_URL": postgres.replace("/postgres", f"/{tmp_path.name}"),
        "TUNESMITH_BROKER_URL": broker.url,
        "TUNESMITH_ARTIFACTS_URL": f"file://{tmp_path / 'store'}",
        "TUNESMITH_TRAINER_PYTHON": str(tmp_path / "python"),
        "TUNESMITH_NODE_ADDRESS": "127.0.0.1",
        "TUNESMITH_LEASE_SECONDS": "6",
    }
    group = Group(tmp_path / "data", tmp_path / "base", **settings)
    try:
        group.start_api()
        upload = {"file": ("rows", files.write_rows())}
        assert group.client.post("/api/v1/datasets", data={"name": "rows"}, files=upload).is_success
        group.workers = {
            name: group.start_worker(name, TUNESMITH_DATA_DIR=str(tmp_path / name)) for name in NAMES
        }
        yield group
    finally:
        group.stop()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_worker_ends_all_nodes_and_the_run_resumes_on_the_others(group: Group, rank: int) -> None:
    job = group.submit_nodes()
    group.wait_for_checkpoint(job)
    killed = group.names(job)[rank]
    os.kill(group.workers[killed].pid, signal.SIGKILL)
    wait_until(lambda: group.run(job)["attempt"] == 2 and len(group.names(job)) == 2, 60, "no attempt 2")
    assert killed not in group.names(job)
    assert group.wait_until_finished(job)["status"] == "succeeded"
    first, second = group.entries(job, 1), group.entries(job, 2)
    assert first[-1].monotonic < second[0].monotonic, "a node of attempt 1 was left"
    resumed = [entry for entry in second if entry.kind is Kind.resumed]
    assert len(resumed) == 2 and len({entry.step for entry in resumed}) == 1
    assert all(entry.intact for entry in resumed), "a node resumed from another checkpoint"
    assert [error["code"] for error in group.errors(job)] == [("lease_lost", "node_lost")[rank]]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_worker_that_is_stopped_lets_the_group_save_first(group: Group, rank: int) -> None:
    job = group.submit_nodes()
    group.wait_for_checkpoint(job)
    stopped = group.workers[group.names(job)[rank]]
    stopped.terminate()
    wait_until(lambda: group.run(job)["attempt"] == 2, 60, lambda: f"{group.run(job)}")
    assert stopped.wait(30) == 0
    assert group.wait_until_finished(job)["status"] == "succeeded"
    assert group.errors(job) == [] and group.run(job)["failure_count"] == 0
    saved = [entry.step for entry in group.entries(job, 1) if entry.kind is Kind.checkpoint]
    (resumed, *_) = [entry for entry in group.entries(job, 2) if entry.kind is Kind.resumed]
    assert resumed.step in saved and resumed.step % 10 != 0, "the leader's last checkpoint is not used"


@pytest.mark.slow
def test_two_runs_that_need_two_of_three_workers_run_one_after_the_other_and_pause_as_one(
    group: Group,
) -> None:
    first, second = group.submit_nodes(steps=60), group.submit_nodes(steps=20)
    wait_until(lambda: "running" in (group.run(first)["status"], group.run(second)["status"]), 60, "none")
    waiting = next(job for job in (first, second) if group.run(job)["status"] == "queued")
    expected = "It needs 2 workers on queue cpu at once; 1 is free."
    wait_until(lambda: group.run(waiting)["waiting_for"] == expected, 30, "it reports something else")
    for job in (first, second):
        assert group.wait_until_finished(job)["status"] == "succeeded"
        assert group.run(job)["attempt"] == 1
    job = group.submit_nodes()
    group.wait_for_checkpoint(job)
    group.post(f"/jobs/{job}/pause")
    wait_until(lambda: group.job(job)["status"] == "paused", 60, lambda: f"{group.job(job)}")
    group.post(f"/jobs/{job}/resume")
    assert group.wait_until_finished(job)["status"] == "succeeded"
    files_of_run = {file["name"] for file in group.get(f"/runs/{group.run(job)['id']}/files")["items"]}
    assert {"log.txt", "log-node-1.txt"} <= files_of_run
