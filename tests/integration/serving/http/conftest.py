"""The servers whose edges must agree: the API with its mounted gateway, and the standalone gateway."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import Session

from app.storage.database import create_database_engine
from app.tables import Deployment, DeploymentStatus
from tests.conftest import ROOT
from tests.integration.serving.conftest import READY_SECONDS, Server, gateway_over
from tests.integration.serving.fake_engine import FakeEngine
from trainers.configs import EngineKind, Queue

MODELS = ("plain", "slow", "endless")
ALLOWED_ORIGIN = "https://chat.example"


@pytest.fixture(scope="module")
def api(fake_engine: FakeEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Yield the API without keys, with a deployment for each of the fake engine's models."""
    with api_server(tmp_path_factory.mktemp("api"), fake_engine) as server:
        yield server


@pytest.fixture(scope="module")
def gateway(fake_engine: FakeEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Yield a standalone gateway without keys, with the same routes."""
    routes = [{"name": name, "base_url": fake_engine.url} for name in MODELS]
    with gateway_over(routes, tmp_path_factory.mktemp("gateway")) as server:
        yield server


@pytest.fixture(scope="module", params=["api", "gateway"])
def edge(request: pytest.FixtureRequest) -> Server:
    """Return each of the two servers in turn."""
    found: Server = request.getfixturevalue(request.param)
    return found


@contextmanager
def api_server(folder: Path, fake_engine: FakeEngine, **variables: str) -> Iterator[Server]:
    """Run `python -m app` without a worker, and with ready deployments."""
    environment = os.environ | {
        "TUNESMITH_DATA_DIR": str(folder),
        "TUNESMITH_PORT": "0",
        "PYTHONPATH": str(ROOT),
        **variables,
    }
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "app", "--no-worker"],
            env=environment,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
        )
    assert process.stdout is not None
    try:
        found = re.search(r"http://\S+(?=/docs)", process.stdout.readline())
        assert found is not None, log.read_text()
        create_deployments(folder, fake_engine)
        yield Server(process, found[0], log)
    finally:
        process.terminate()
        process.wait(READY_SECONDS)
        process.stdout.close()


def create_deployments(folder: Path, fake_engine: FakeEngine) -> None:
    values: dict[str, Any] = {"base": "hub/base", "engine": EngineKind.hf, "queue": Queue.cpu}
    values |= {"status": DeploymentStatus.ready, "address": fake_engine.url}
    engine = create_database_engine(f"sqlite:///{folder / 'tunesmith.db'}")
    with Session(engine) as session:
        for name in MODELS:
            session.add(Deployment(name=name, engine_key=name, **values))
        session.commit()
    engine.dispose()
