"""What tests of all packages share: a tiny model, made by the real program."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import services

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


@pytest.fixture(scope="session")
def mlflow_server() -> Iterator[services.MlflowServer]:
    with services.mlflow() as server:
        yield server


@pytest.fixture
def mlflow(mlflow_server: services.MlflowServer) -> services.MlflowServer:
    """A real MLflow server, which an earlier test may have stopped."""
    mlflow_server.start()
    return mlflow_server
