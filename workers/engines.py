"""Deployments: one thread looks for those that wait, and one thread keeps each engine alive."""

import logging
import shutil
import socket
import threading
import time
from pathlib import Path
from typing import Any

from sqlalchemy.exc import DBAPIError, OperationalError

from app.db import reading, transaction
from app.deployments import lifecycle as deployments
from app.errors import RunErrorCode
from app.runs.lifecycle import StaleAttempt
from app.tables import Deployment, DeploymentStatus
from serving.engines import Serve, find_engine
from trainers.configs import EngineOptions, Queue
from workers import process
from workers.host import Host
from workers.launch import LaunchError, ResolvedModel, environment, resolve_model
from workers.lease import Lease
from workers.process import Child

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
PROBE_SECONDS = 2.0
# An engine that is up but answers no probe for so long is started again.
UNHEALTHY_SECONDS = 60.0
START_SECONDS = 1800.0
STOP_SECONDS = 10.0
# An engine that dies again and again while it is ready is given up: each restart costs a model load.
MAX_RESTARTS = 10
LOG_TAIL_BYTES = 4000


def keep_deployments(host: Host) -> list[threading.Thread]:
    """Take waiting deployments until the worker stops; answers the threads that keep their engines."""
    keepers: list[threading.Thread] = []
    while not host.stopping.wait(LOOK_SECONDS):
        asked_at = time.monotonic()
        try:
            deployment, gpus = _claim(host)
        except DBAPIError as error:
            logger.warning("cannot look for deployments: %s", error.orig)
            continue
        if deployment is not None:
            keeper = threading.Thread(
                target=_keep, args=(host, deployment, gpus, asked_at), name=deployment.id
            )
            keeper.start()
            keepers.append(keeper)
    return keepers


def _claim(host: Host) -> tuple[Deployment | None, list[int]]:
    """A deployment with the devices that it needs; nothing is claimed that has no device."""
    for queue in host.devices.free(host.queues):
        gpus = host.devices.take(queue)
        if gpus is None:
            continue
        try:
            with transaction() as session:
                claimed = deployments.claim(session, host.worker_id, [queue], host.settings.lease_seconds)
        except DBAPIError:
            host.devices.give_back(gpus)
            raise
        if claimed is not None:
            return claimed, gpus
        host.devices.give_back(gpus)
    return None, []


def _keep(host: Host, deployment: Deployment, gpus: list[int], asked_at: float) -> None:
    seconds = host.settings.lease_seconds
    lease = Lease(
        deployment.id,
        seconds,
        asked_at,
        lambda s: deployments.renew(s, deployment.id, deployment.attempt, seconds),
    )
    try:
        with host.leases.hold(lease):
            _Keeper(host, deployment, lease).keep(gpus)
    except StaleAttempt as stale:
        logger.warning("left to another worker: %s", stale, extra={"deployment_id": deployment.id})
    except DBAPIError as error:
        logger.warning("left until its lease ends: %s", error.orig, extra={"deployment_id": deployment.id})
    finally:
        host.devices.give_back(gpus)


class _Keeper:
    """Keeps the engine of one deployment alive until it is told to stop."""

    def __init__(self, host: Host, deployment: Deployment, lease: Lease) -> None:
        self.host = host
        self.deployment = deployment
        self.lease = lease
        self.engine = find_engine(deployment.engine, host.settings.engine_programs.get(deployment.engine, []))
        self.folder = host.settings.data_dir / "deployments" / deployment.id / f"attempt-{deployment.attempt}"

    def keep(self, gpus: list[int]) -> None:
        try:
            model = resolve_model(None, self.deployment.model_id or self.deployment.base, self.host.settings)
        except LaunchError as refused:
            self._end(_error(f"The model cannot be read: {refused}"))
            return
        restarts = 0
        while self._serve(model, gpus):
            restarts += 1
            error = _error(f"The engine ended: {self._last_words()}")
            if restarts > MAX_RESTARTS:
                self._end(error)
                return
            with transaction() as session:
                deployments.restarting(session, self.deployment.id, self.deployment.attempt, error)
            logger.warning(
                "engine restarts", extra={"deployment_id": self.deployment.id, "restarts": restarts}
            )
            self.host.stopping.wait(min(2.0 ** (restarts - 1), 60))

    def _serve(self, model: ResolvedModel, gpus: list[int]) -> bool:
        """Run the engine once; True when it died and is to be started again."""
        address, child = self._start(model, gpus)
        try:
            self.lease.bind(child)
            if not self._await_health(child, address):
                return False
            with transaction() as session:
                deployments.ready(session, self.deployment.id, self.deployment.attempt, address)
            logger.info("ready", extra={"deployment_id": self.deployment.id, "address": address})
            return self._watch(child, address)
        finally:
            child.kill()

    def _start(self, model: ResolvedModel, gpus: list[int]) -> tuple[str, Child]:
        settings, name = self.host.settings, self.deployment.name
        port = _free_port(settings.engine_host)
        adapters = {name: str(model.adapter)} if model.adapter else {}
        served_name = f"{name}-base" if adapters else name
        serve = Serve(
            model.base,
            served_name,
            settings.engine_host,
            port,
            adapters,
            EngineOptions.model_validate(self.deployment.options),
        )
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        child = process.start(
            self.engine.command(serve),
            log=self.log,
            environment=environment(Queue(self.deployment.queue), gpus) | self.engine.environment(serve),
            seconds=self.lease.seconds_left,
        )
        return f"http://{settings.engine_host}:{port}", child

    def _await_health(self, child: Child, address: str) -> bool:
        """Whether the engine came up; if not, the deployment has been ended or handed back."""
        deadline = time.monotonic() + START_SECONDS
        while (exit_status := child.wait(LOOK_SECONDS / 2)) is None:
            if self._leave(child):
                return False
            if self.engine.is_up(address):
                return True
            if time.monotonic() > deadline:
                self._end(_error(f"The engine was not ready after {START_SECONDS:.0f} s."))
                return False
        if self.lease.lost.is_set():
            raise StaleAttempt(f"lost the lease of {self.deployment.id}")
        self._end(
            _error(f"The engine ended with status {exit_status} before it was ready: {self._last_words()}")
        )
        return False

    def _watch(self, child: Child, address: str) -> bool:
        """Wait while the engine is well; True when it is to be started again."""
        healthy_at = time.monotonic()
        while child.wait(PROBE_SECONDS) is None:
            if self._leave(child):
                return False
            if self.engine.is_up(address):
                healthy_at = time.monotonic()
            elif time.monotonic() - healthy_at > UNHEALTHY_SECONDS:
                logger.warning("engine does not answer", extra={"deployment_id": self.deployment.id})
                return True
        if self.lease.lost.is_set():
            raise StaleAttempt(f"lost the lease of {self.deployment.id}")
        return True

    def _leave(self, child: Child) -> bool:
        """Stop the engine if the deployment is to stop or this worker is to leave."""
        if self.lease.lost.is_set():
            raise StaleAttempt(f"lost the lease of {self.deployment.id}")
        stopping = self._status() is DeploymentStatus.stopping
        if not stopping and not self.host.stopping.is_set():
            return False
        if not stopping:
            # Requests go elsewhere before the engine stops.
            with transaction() as session:
                deployments.hand_back(session, self.deployment.id, self.deployment.attempt)
        child.stop()
        child.wait(STOP_SECONDS)
        child.kill()
        if stopping:
            self._end(None)
        return True

    def _status(self) -> DeploymentStatus:
        """What SQL wants; while it is out of reach, what it wanted last."""
        try:
            with reading() as session:
                self.deployment.status = session.get_one(Deployment, self.deployment.id).status
        except OperationalError as error:
            logger.warning("cannot read %s: %s", self.deployment.id, error.orig)
        return self.deployment.status

    def _end(self, error: dict[str, Any] | None) -> None:
        with transaction() as session:
            deployments.end(session, self.deployment.id, self.deployment.attempt, error)
        logger.info("ended", extra={"deployment_id": self.deployment.id, "error": error})

    @property
    def log(self) -> Path:
        """What the engine prints."""
        return self.folder / "log.txt"

    def _last_words(self) -> str:
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - LOG_TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "it printed nothing"


def _error(message: str) -> dict[str, Any]:
    hint = "The engine's whole log lies on the worker's host, in its data directory under deployments/."
    return {"code": RunErrorCode.deployment_failed, "message": message, "hint": hint}


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
    return port
