"""Goal: a run on two hosts trains as one on a single host does, and resumes exactly on other hosts.

Method: each host is a launcher on the loopback with a run directory of its own, as each worker's is.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import OFFLINE, ROOT
from tests.integration.trainers.conftest import losses
from tests.services import free_port
from trainers.configs import parse_stage
from trainers.runtime import run_dir as files
from trainers.runtime.launch_command import NodePlace, build_command


@pytest.fixture
def stage(starter: Path, training_rows: str) -> dict[str, Any]:
    return {
        "stage": "sft",
        "base": str(starter),
        "dataset": training_rows,
        # Dropout draws from the random state of each process, which a checkpoint of both must contain.
        "tuning": {"method": "lora", "dropout": 0.1},
        "max_steps": 6,
        "batch_size": 8,
        "micro_batch_size": 2,
        "learning_rate": 5e-3,
        "log_every_steps": 1,
        "save_every_steps": 3,
    }


def run_on_hosts(values: dict[str, Any], *folders: Path) -> None:
    """Run the stage with a launcher for each run directory, and check that all succeed."""
    port = free_port()
    processes = [_start(values, rank, port, len(folders), folder) for rank, folder in enumerate(folders)]
    outputs = [process.communicate(timeout=280)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(folders), outputs
    assert files.read_result(folders[0]) is not None


def _start(values: dict[str, Any], rank: int, port: int, count: int, folder: Path) -> "subprocess.Popen[str]":
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "asked.json"
    config.write_text(json.dumps(values))
    place = NodePlace(rank, count, "127.0.0.1", "127.0.0.1", port, "test")
    command = build_command(sys.executable, parse_stage(values), config, folder, place)
    environment = os.environ | OFFLINE | {"PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **options)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_on_two_hosts_resumes_from_its_checkpoint_as_if_it_had_not_stopped(
    stage: dict[str, Any], tmp_path: Path
) -> None:
    values = stage | {"nodes": 2}
    run_on_hosts(values, tmp_path / "a0", tmp_path / "a1")
    assert sorted(path.name for path in (tmp_path / "a0/checkpoints").iterdir()) != []
    assert not (tmp_path / "a1" / "checkpoints").exists(), "only the first host publishes checkpoints"
    assert not (tmp_path / "a1" / "model").exists()
    for host in ("b0", "b1"):
        _copy_checkpoint(tmp_path / "a0", tmp_path / host, 3)
    run_on_hosts(values, tmp_path / "b0", tmp_path / "b1")
    whole = losses(tmp_path / "a0")
    assert losses(tmp_path / "b0") == {step: loss for step, loss in whole.items() if step > 3}
    weights = "model/adapter_model.safetensors"
    assert (tmp_path / "b0" / weights).read_bytes() == (tmp_path / "a0" / weights).read_bytes()
    run_on_hosts(stage | {"devices": 2}, tmp_path / "one")
    assert losses(tmp_path / "one") == pytest.approx(whole, abs=1e-4)


def _copy_checkpoint(source: Path, target: Path, step: int) -> None:
    """Fill a new run directory with a checkpoint, as a worker does before it starts the program."""
    path = f"{files.CHECKPOINTS}/step-{step:08d}"
    shutil.copytree(source / path, target / path)
    lines = [line for line in files.read_lines(source / files.CHECKPOINT_LINES) if line["step"] == step]
    files.append_lines(target / files.CHECKPOINT_LINES, lines)
