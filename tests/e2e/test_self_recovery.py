"""Runs that recover by themselves from a full disk and from too little memory."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.platform import LONG, Platform, sft_stage, wait_until
from tests.services import require_root
from trainers.data.recipes.arithmetic import ProblemSplit, generate_problems


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a file system of 6 MiB."""
    require_root("mount a small file system")
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(mount)], check=True)
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


def test_a_run_that_fills_the_disk_waits_for_free_space(team: Platform, small_disk: Path) -> None:
    artifacts = f"file://{team.folder / 'artifacts'}"
    team.start_worker(TUNESMITH_DATA_DIR=str(small_disk), TUNESMITH_ARTIFACTS_URL=artifacts)
    full = {**LONG, "tuning": {"method": "full"}, "keep_checkpoints": 50}
    job = team.submit(sft_stage(**full))
    wait_until(lambda: team.run(job)["error"] is not None, 120, lambda: f"{team.job(job)}")
    run = team.run(job)
    assert (run["status"], run["error"]["code"]) == ("queued", "disk_full")
    assert "MiB of free disk space" in run["waiting_for"]
    assert "resumes from its last complete checkpoint" in run["error"]["hint"]
    steps = [saved["step"] for saved in team.get(f"/runs/{run['id']}/checkpoints")["items"]]
    assert steps, "no checkpoint was kept"
    subprocess.run(["mount", "-o", "remount,size=400m", str(small_disk)], check=True)
    assert team.first_resumed_step(job) > max(steps)
    statuses = [event["data"]["status"] for event in team.events(run["id"], "status")]
    assert "paused" not in statuses
    team.post(f"/jobs/{job}/cancel")
    team.wait_until_finished(job)


@pytest.fixture
def little_memory(tmp_path: Path) -> str:
    """Return a Python whose processes may address 4.2 GiB, half of which the libraries reserve."""
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nulimit -v 4400000\nexec {sys.executable} "$@"\n')
    script.chmod(0o755)
    return str(script)


def test_a_micro_batch_that_does_not_fit_is_halved_until_it_does(
    embedded: Platform, little_memory: str
) -> None:
    rows = [
        row | {"question": f"{row['question']} " * 9}
        for row in generate_problems(512, ProblemSplit.train, seed=1)
    ]
    embedded.upload("long", rows)
    embedded.start_worker(TUNESMITH_TRAINER_PYTHON=little_memory)
    # Padded rows need memory that padding-free rows would not.
    large: dict[str, Any] = {"batch_size": 512, "micro_batch_size": 512, "max_steps": 2, "log_every_steps": 1}
    large |= {"attention": "sdpa"}
    job = embedded.wait_until_finished(embedded.submit(sft_stage(dataset="long", **large)))
    (run,) = job["runs"]
    assert run["status"] == "succeeded", run
    warnings = [event["data"] for event in embedded.events(run["id"], "warning")]
    assert (
        warnings[0]["code"] == "recomputation_enabled" and run["config"]["activation_checkpointing"] is True
    )
    halved = [warning["message"] for warning in warnings if warning["code"] == "micro_batch_halved"]
    assert halved and "micro_batch_size 512" in halved[0]
    assert (run["config"]["batch_size"], run["config"]["micro_batch_size"]) == (512, 512 >> len(halved))
    assert run["attempt"] == 2 + len(halved)
