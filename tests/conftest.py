"""What tests of all packages share: a tiny model, made by the real program."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OFFLINE = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

os.environ.update(OFFLINE)  # Before transformers is imported: tests never ask the network.


@pytest.fixture(scope="session")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A starter model that has learned for a few seconds only."""
    out = tmp_path_factory.mktemp("starter") / "starter"
    command = [sys.executable, "-m", "trainers.starter", "--out", str(out), "--steps", "30"]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    return out
