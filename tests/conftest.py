"""Fixtures for the tests of all packages: a tiny model, shared data and an MLflow server."""

import fcntl
import gc
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants

from tests import services
from tests.shared_data import REAL, SharedData, real_data, write_stand_in

ROOT = Path(__file__).parents[1]
OFFLINE = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
# As a worker sets it: TRL imports MLflow where it is installed, which takes almost a second.
OFFLINE["DISABLE_MLFLOW_INTEGRATION"] = "TRUE"

os.environ.update(OFFLINE)  # Before transformers is imported, so that no test uses the network.
os.environ["TUNESMITH_WARM_START"] = "false"  # Only the tests of warm starts need the process.
# Images of containers often set it. Then each of the hundreds of processes would compile our modules again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Hypothesis draws constants of all loaded modules: examples would depend on the tests before them.
providers._get_local_constants = Constants
# Hundreds of programs start faster with the `sitecustomize` of this folder.
PYTHON_PATHS = str(ROOT / "tests" / "startup"), os.environ.get("PYTHONPATH")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, PYTHON_PATHS))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect no garbage among modules and tests, which stay: reading them again and again takes seconds."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    forget_log_handlers()


def forget_log_handlers() -> None:
    """Undo `app.logs.configure_logging`: its handler writes to the closed output of one test."""
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if type(handler) is logging.StreamHandler:
            root.removeHandler(handler)
            root.setLevel(logging.WARNING)


def make_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a path that one of the processes of a run has made, and that all of them read."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    folder.mkdir(exist_ok=True)
    done, out = folder.with_suffix(".done"), folder / name
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            make(out)
            done.touch()
    return out


@pytest.fixture(scope="session")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a starter model that was trained for a few seconds."""

    def train(out: Path) -> None:
        command = [sys.executable, "-m", "trainers.starter", "--out", str(out), "--steps", "30"]
        command += ["--progress", str(out.parent.with_name("starter-progress.json"))]
        subprocess.run(command, check=True, cwd=ROOT, capture_output=True)

    return make_once(tmp_path_factory, "starter", train)


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
