"""The maths chain through the API: SFT, DPO and GRPO each raise the held-out score."""

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
