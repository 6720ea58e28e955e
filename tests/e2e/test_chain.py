"""The demos that take minutes: the worked cases pass their gates, and the maths chain raises each score."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_every_stage_raises_the_held_out_score(tuning: str, tmp_path: Path) -> None:
    environment = os.environ | {"TUNESMITH_DATA_DIR": str(tmp_path)}
    seeds = ["--seed", "0", "--seed", "1", "--seed", "2"]
    command = [sys.executable, "-m", "app.demos.maths_chain", *seeds, "--tuning", tuning]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", ["translation", "maths"])
def test_a_worked_case_passes_its_gates_and_deploys_the_model(case: str, tmp_path: Path) -> None:
    environment = os.environ | {"TUNESMITH_DATA_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "app.demos.worked_case", case]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The job has succeeded." in done.stdout
