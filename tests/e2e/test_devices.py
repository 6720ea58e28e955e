"""Runs on the GPUs of a host.

Goal: a worker uses all of its GPUs at once, workers of one host share them without overlap, and the GPUs of a
killed worker are used again only when its programs are gone.
Method: real workers, with an `nvidia-smi` that reports eight GPUs, and a program in place of the trainer that
records which GPUs it was given and whether another living program has one of them.
"""

import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.platform import SHORT_LEASE, Platform, find_children, sft_stage, wait_until
from tests.integration.workers.conftest import PROGRAM

NVIDIA_SMI = """#!/bin/sh
[ "$1" = -L ] && exit 0
for i in 0 1 2 3 4 5 6 7; do echo "$i, GPU-0000000$i-0000, 143771, Disabled, NVIDIA H200"; done
"""
# Waits until the test creates a file with the name of its run.
TRAINER = """
import fcntl

def state(pid):  # A zombie has released its devices.
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""

folder = pathlib.Path(__file__).parent
mine = {"run": run_dir.parent.name, "attempt": attempt, "pid": os.getpid(),
        "gpus": os.environ["CUDA_VISIBLE_DEVICES"], "order": os.environ["CUDA_DEVICE_ORDER"],
        "locks": [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
                  if os.path.exists(f"/proc/self/fd/{fd}") and fd not in "012"]}
with (folder / "ledger").open("a+") as ledger:
    fcntl.flock(ledger, fcntl.LOCK_EX)
    ledger.seek(0)
    earlier = [json.loads(line) for line in ledger]
    shares = [e for e in earlier if set(e["gpus"].split(",")) & set(mine["gpus"].split(","))]
    mine["overlaps"] = [e for e in shares if state(e["pid"]) not in ("Z", "X", "")]
    ledger.write(json.dumps(mine) + "\\n")
signal.signal(signal.SIGTERM, signal.SIG_DFL)
while not (folder / mine["run"]).exists():
    time.sleep(0.05)
succeed()
"""

PREPARE = {"stage": "prepare", "dataset": "test", "split": {"test": 4}}


class GpuHost(Platform):
    """An installation on a host with eight GPUs."""

    def __init__(self, folder: Path) -> None:
        self.programs = folder / "programs"
        for name, text in (("nvidia-smi", NVIDIA_SMI), ("trainer", PROGRAM + TRAINER)):
            self.programs.mkdir(parents=True, exist_ok=True)
            (self.programs / name).write_text(text)
            (self.programs / name).chmod(0o755)
        (folder / "starter").mkdir()
        (folder / "starter" / "config.json").write_text('{"model_type": "llama"}')
        super().__init__(
            folder / "data",
            folder / "starter",
            TUNESMITH_TRAINER_PYTHON=str(self.programs / "trainer"),
            TUNESMITH_DEVICE_LOCKS_DIR=str(folder / "locks"),
        )
        self.suspended: list[psutil.Process] = []
        self.environment["PATH"] = f"{self.programs}:{self.environment['PATH']}"
        self.environment.pop("CUDA_VISIBLE_DEVICES", None)

    def train(self, devices: int = 1) -> str:
        """Submit a job that trains on so many GPUs."""
        return self.submit(sft_stage(devices=devices, batch_size=devices, micro_batch_size=1), queue="cuda")

    def ledger(self) -> list[Any]:
        """Return what the programs have recorded."""
        file = self.programs / "ledger"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def gpus(self, jobs: list[str], attempt: int = 1) -> list[str]:
        """Wait until the programs of these jobs have started, and return their GPUs."""
        runs = {self.run(job)["id"] for job in jobs}

        def started() -> list[Any]:
            return [line for line in self.ledger() if line["run"] in runs and line["attempt"] == attempt]

        wait_until(lambda: len(started()) == len(runs), 120, lambda: f"{[self.run(job) for job in jobs]}")
        return [line["gpus"] for line in started()]

    def is_released(self, job: str) -> bool:
        """Return whether the lease of the job's first attempt has ended."""
        run = self.run(job)
        return bool(run["status"] == "queued" or run["attempt"] > 1)

    def resume_guards(self) -> None:
        """Let suspended guards continue."""
        for guard in self.suspended:
            with contextlib.suppress(psutil.NoSuchProcess):
                guard.resume()

    def finish(self, job: str) -> None:
        """Let the program of a job end, and wait until the job has."""
        (self.programs / self.run(job)["id"]).touch()
        assert self.wait_until_finished(job)["status"] == "succeeded"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[GpuHost]:
    """Yield a host with eight GPUs and an API."""
    host = GpuHost(tmp_path)
    try:
        host.start_api()
        host.upload_examples()
        yield host
    finally:
        host.resume_guards()
        host.stop()


def test_one_worker_runs_eight_programs_side_by_side(host: GpuHost) -> None:
    worker = host.start_worker(queue="cuda")
    jobs = [host.train() for _ in range(8)]
    assert sorted(host.gpus(jobs)) == [*"01234567"]
    assert {line["order"] for line in host.ledger()} == {"PCI_BUS_ID"}
    assert not any("locks" in path for line in host.ledger() for path in line["locks"]), (
        "a program holds the lock of its GPU, and would keep it if it leaked"
    )
    last = host.train(devices=2)
    assert host.run(last)["waiting_for"] == "This run is the next one; the only worker on queue cuda is busy."
    host.finish(jobs[3])
    wait_until(lambda: "has more than 1 free" in (host.run(last)["waiting_for"] or ""), 60, "1 GPU is free")
    host.finish(jobs[5])
    assert host.gpus([last]) == ["3,5"]
    assert "the most is 8" in host.run(host.train(devices=9))["waiting_for"]
    # All programs stop at once with their worker.
    worker.terminate()
    assert worker.wait(60) == 0
    assert [line for line in host.ledger() if psutil.pid_exists(line["pid"])] == []


def test_gpus_of_a_killed_worker_are_used_again_when_its_programs_are_gone(host: GpuHost) -> None:
    first = host.start_worker("first", "cuda", CUDA_VISIBLE_DEVICES="3,GPU-00000001,0", **SHORT_LEASE)
    jobs = [host.train() for _ in range(3)]
    assert sorted(host.gpus(jobs)) == ["0", "1", "3"]
    waiting = host.train()
    assert host.run(waiting)["status"] == "queued"
    host.start_worker("second", "cuda")
    others = [waiting, *(host.train() for _ in range(4))]
    assert sorted(host.gpus(others)) == ["2", "4", "5", "6", "7"]

    host.suspended = _suspend_guards(first)
    first.send_signal(signal.SIGKILL)
    first.wait()
    # The other worker ends what it finds of a worker that is gone, guards that are suspended included.
    wait_until(lambda: all(host.is_released(job) for job in jobs), 60, "the leases do not end")
    host.resume_guards()
    assert sorted(host.gpus(jobs, attempt=2)) == ["0", "1", "3"]
    assert [line["overlaps"] for line in host.ledger() if line["overlaps"]] == []
    for job in [*jobs, *others]:
        host.finish(job)


def test_the_service_on_a_host_with_gpus_trains_on_one_without_being_asked(host: GpuHost) -> None:
    host.start_service()
    wait_until(lambda: host.client.get("/readyz").json()["queues"] == ["cpu", "cuda"], 120, "no worker")
    (worker,) = host.get("/workers", alive=True)["items"]
    assert (worker["queues"], len(worker["hardware"]["gpus"])) == (["cuda", "cpu"], 8)
    stages = [sft_stage(), PREPARE]
    sft, prepare = host.post("/jobs/dry-run", {"name": "job", "stages": stages})["stages"]
    assert (sft["queue"], prepare["queue"]) == ("cuda", "cpu")
    assert sft["queue_reason"].startswith("The best hardware of the live workers: 8 × NVIDIA H200")
    on_gpu, on_cpu = host.submit(sft_stage()), host.submit(sft_stage(queue="cpu"))
    assert (host.gpus([on_gpu]), host.gpus([on_cpu])) == (["0"], [""])
    for job in (on_gpu, on_cpu):
        host.finish(job)


def _suspend_guards(worker: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Suspend the guards of a worker, which would end its programs at once after the worker is killed."""
    guards = find_children(worker, "workers.hosts.guard")
    assert len(guards) == 3
    for guard in guards:
        guard.suspend()
    return guards
