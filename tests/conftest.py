"""Fixtures for the tests of all packages: a tiny model, shared data and an MLflow server."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import services
from tests.shared_data import REAL, SharedData, real_data, write_stand_in

ROOT = Path(__file__).parents[1]
OFFLINE = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

os.environ.update(OFFLINE)  # Before transformers is imported, so that no test uses the network.
os.environ["TUNESMITH_WARM_START"] = "false"  # Only the tests of warm starts need the process.


@pytest.fixture(scope="session")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a starter model that was trained for a few seconds."""
    out = tmp_path_factory.mktemp("starter") / "starter"
    command = [sys.executable, "-m", "trainers.starter", "--out", str(out), "--steps", "30"]
    command += ["--progress", str(out.parent.with_name("starter-progress.json"))]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    return out


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> SharedData:
    return write_stand_in(tmp_path_factory.mktemp("stand-in") / "data")


@pytest.fixture(params=["stand-in", "real"])
def shared_data(request: pytest.FixtureRequest, stand_in: SharedData) -> SharedData:
    """Return the generated stand-in, or the real data where the folder exists."""
    if request.param == "stand-in":
        return stand_in
    if not REAL.is_dir():
        pytest.skip("the shared data is not next to the repository")
    return real_data()


@pytest.fixture(scope="session")
def mlflow_server() -> Iterator[services.MlflowServer]:
    with services.mlflow() as server:
        yield server


@pytest.fixture
def mlflow(mlflow_server: services.MlflowServer) -> services.MlflowServer:
    """Return a running MLflow server; an earlier test may have stopped it."""
    mlflow_server.start()
    return mlflow_server
