"""The time from POST to the first answer of a model that the job has trained, with cold and with warm starts.

python -m tests.benchmarks.workers.first_answer

One job trains the starter for 20 steps and deploys it; the parity check is on. Each service runs the job
twice, and the services take turns.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from tests.benchmarks.report import print_table
from tests.e2e.platform import QUESTION, QUICK, ROOT, Platform, sft_stage, wait_until

# The timings of a service that nobody has configured.
DEFAULTS = {name: "" for name in QUICK if name.startswith("TUNESMITH_")}
PHASES = ("claim", "first step", "training", "deploy claimed", "engine and parity", "first answer")
LOG = "api.log"
READY = "warm starts are ready"


def main(rounds: Annotated[int, typer.Option(help="Services of each kind to measure.")] = 1) -> None:
    """Print seconds by phase, CPU seconds of the service, and the memory of the fork server."""
    rows, memory = [], ""
    with tempfile.TemporaryDirectory() as folder:
        starter = Path(folder) / "starter"
        command = [sys.executable, "-m", "trainers.starter", "--out", str(starter), "--steps", "30"]
        subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
        for number in range(rounds):
            for warm in (False, True):
                measured, found = _measure(Path(folder) / f"{number}-{warm}", starter, warm=warm)
                rows += measured
                memory = found or memory
    header = ["start", "job", "seconds in all", *PHASES]
    print_table("From POST to the first answer, in seconds", header, rows)
    print(memory)
    print(f"Load average: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def _measure(folder: Path, starter: Path, *, warm: bool) -> tuple[list[list[str]], str]:
    platform = Platform(folder, starter)
    for name in DEFAULTS:
        platform.environment.pop(name, None)
    platform.environment["TUNESMITH_WARM_START"] = str(warm).lower()
    kind, memory = ("warm" if warm else "cold"), ""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        service = platform.start_service()
        wait_until(lambda: platform.client.get("/readyz").json()["workers"] == "ok", 300, "no worker")
        platform.upload_examples()
        if warm:
            wait_until(lambda: READY in (folder / LOG).read_text(), 120, "no fork server")
            memory = _read_memory(folder / LOG)
        rows = [[kind, f"{number}", *_time_job(platform, f"one-{number}")] for number in (1, 2)]
        service.terminate()
        service.wait(120)
    finally:
        platform.stop()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
    print(f"{kind}: {cpu_seconds:.1f} CPU seconds for the service and two jobs", flush=True)
    return rows, memory


def _time_job(platform: Platform, name: str) -> list[str]:
    """Run one job; return the seconds from POST to the first answer, and those of each phase."""
    posted_at = time.time()
    stages = [sft_stage(), {"stage": "deploy", "model": {"stage": "sft"}, "deployment": name}]
    job = platform.submit(*stages)
    while platform.job(job)["status"] not in ("succeeded", "failed"):
        time.sleep(0.1)  # Requests take CPU time from what is measured.
    sft, deploy = platform.job(job)["runs"]
    assert deploy["status"] == "succeeded", platform.job(job)
    platform.client.post(
        "/v1/chat/completions", json={"model": name, "messages": QUESTION}
    ).raise_for_status()
    first_step = next(event for event in platform.events(sft["id"], "metrics"))
    moments = [
        _seconds(sft, "started_at"),
        _seconds(first_step, "created_at"),
        _seconds(sft, "finished_at"),
        _seconds(deploy, "started_at"),
        _seconds(deploy, "finished_at"),
        time.time(),
    ]
    phases = [moment - earlier for earlier, moment in zip([posted_at, *moments], moments, strict=False)]
    return [f"{seconds:.2f}" for seconds in [moments[-1] - posted_at, *phases]]


def _seconds(values: Mapping[str, Any], field: str) -> float:
    return datetime.fromisoformat(values[field]).timestamp()


def _read_memory(log: Path) -> str:
    line = next(line for line in log.read_text().splitlines() if READY in line)
    fields = json.loads(line)
    return (
        f"The fork server takes {fields['memory_bytes'] >> 20} MiB of memory without the pages of files, and "
        f"was ready after {fields['seconds']} s."
    )


if __name__ == "__main__":
    typer.run(main)
