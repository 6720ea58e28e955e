"""A worker's deployment manager in this process, over engines that are small real programs."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from app.deployments import lifecycle
from app.deployments.create import build_deployment, insert_deployment
from app.storage.database import read_session, transaction
from app.storage.opening import get_store
from app.tables import Deployment, DeploymentStatus, Model, ModelKind
from trainers.configs import DeploymentChoice, EngineKind, ParityMode, Queue
from workers.engines.deployment_manager import DeploymentManager
from workers.hosts.worker import WorkerContext

STAND_IN = Path(__file__).with_name("stand_in_engine.py")
TIMEOUT_SECONDS = 120.0


def wait_until(condition: Callable[[], object], seconds: float = TIMEOUT_SECONDS) -> None:
    """Poll until the condition holds; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.05)


@dataclass
class StandIn:
    """The engines of a test, which all read the same folder."""

    folder: Path

    def ask(self, behaviour: str, models: str = "") -> None:
        """Let the engines misbehave for models with this text in their names."""
        (self.folder / behaviour).write_text(models)

    def stop_asking(self, behaviour: str) -> None:
        (self.folder / behaviour).unlink()

    def processes(self) -> list[int]:
        """Return the process ids of all engines that were started."""
        file = self.folder / "starts"
        return [int(line) for line in file.read_text().split()] if file.exists() else []

    def running(self) -> list[int]:
        """Return those that still run."""
        return [process for process in self.processes() if is_running(process)]

    def requests(self, path: str = "") -> list[dict[str, Any]]:
        """Return the requests of all engines, optionally to one path."""
        file = self.folder / "requests"
        lines = file.read_text().splitlines() if file.exists() else []
        return [request for request in map(json.loads, lines) if path in request["path"]]


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def stand_in(worker: WorkerContext, tmp_path: Path) -> StandIn:
    """Make the stand-in the engine `hf` of the worker."""
    folder = tmp_path / "stand-in"
    folder.mkdir()
    worker.settings.engine_commands = {EngineKind.hf: [sys.executable, str(STAND_IN), str(folder)]}
    worker.settings.drain_seconds = 0.2
    worker.settings.parity = ParityMode.off
    return StandIn(folder)


@pytest.fixture
def manager(worker: WorkerContext, stand_in: StandIn) -> Iterator[DeploymentManager]:
    """Run a deployment manager; afterwards none of its engines runs any more."""
    manager = DeploymentManager(worker)
    thread = threading.Thread(target=manager.run)
    thread.start()
    yield manager
    worker.stopping.set()
    thread.join(TIMEOUT_SECONDS)
    assert not thread.is_alive()
    assert stand_in.running() == []


@pytest.fixture
def base(worker: WorkerContext) -> str:
    """Return the folder of a base model."""
    return str(worker.settings.data_dir / "models" / "base")


@pytest.fixture
def adapter(worker: WorkerContext, base: str, tmp_path: Path) -> Callable[..., str]:
    """Return a function that registers an adapter on the base, and returns its id."""

    def register(name: str, template: str = "") -> str:
        folder = tmp_path / "adapters" / name
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "name": name}))
        save_file({"weight": np.zeros(1, np.float32)}, folder / "adapter_model.safetensors")
        if template:
            (folder / "chat_template.jinja").write_text(template)
        published = get_store().publish_folder(folder, f"models/{name}")
        with transaction() as session:
            model = Model(
                name=name,
                kind=ModelKind.adapter,
                base=base,
                artifact=published.key,
                sha256=published.sha256,
                size_bytes=published.size_bytes,
            )
            session.add(model)
        return model.id

    return register


def deploy(name: str, model: str, queue: Queue = Queue.cpu, **choice: Any) -> str:
    """Queue a deployment and return its id."""
    choices = DeploymentChoice.model_validate({"engine": "hf", **choice})
    with transaction() as session:
        row = build_deployment(session, name, model, choices, queue)
        return insert_deployment(session, row).id


def load(deployment_id: str) -> Deployment:
    with read_session() as session:
        return session.get_one(Deployment, deployment_id)


def wait_for_status(deployment_id: str, status: DeploymentStatus) -> Deployment:
    """Wait until the deployment has this status, and return it."""
    wait_until(lambda: load(deployment_id).status is status)
    return load(deployment_id)


def stop(deployment_id: str) -> None:
    with transaction() as session:
        lifecycle.stop(session, deployment_id)
