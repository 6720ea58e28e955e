"""One deployment on an engine that it may share: moved in, proved, opened to requests, and moved out."""

import logging
import threading
import time
from typing import Any

from sqlalchemy.exc import DBAPIError

from app.deployments import lifecycle as deployments
from app.runs.lifecycle import StaleAttempt
from app.storage.database import read_session, transaction
from app.tables import Deployment, DeploymentStatus, Model
from serving.engines import EngineRequestFailed
from trainers.configs import ParityMode
from trainers.runtime.error_codes import ErrorCode
from workers.engines.engine_process import POLL_SECONDS, EngineProcess, EngineStart, engine_error
from workers.engines.parity_check import ParityTarget, check_parity
from workers.hosts.lease import Lease
from workers.hosts.worker import WorkerContext
from workers.runs.launch import LaunchError, ResolvedModel, fetch_model

logger = logging.getLogger(__name__)

# Longer than any gateway still sends requests by a table of routes that it has read before.
SETTLE_SECONDS = 2.0
# An engine that dies of loading a model is not tried with it a third time: others live on it.
MOST_DEATHS = 2


class _ToLeave(Exception):
    """The deployment is to leave its engine."""


class _Failed(Exception):
    """The deployment cannot be served."""

    def __init__(self, error: dict[str, Any], parity: dict[str, Any] | None = None) -> None:
        super().__init__(error["message"])
        self.error = error
        self.parity = parity


class DeploymentRunner:
    """A deployment that this worker holds, and the thread that carries it through its life."""

    def __init__(
        self, host: WorkerContext, keeper: EngineProcess, deployment: Deployment, asked_at: float
    ) -> None:
        self.host = host
        self.keeper = keeper
        self.deployment = deployment
        self.status = deployment.status
        self.unused_seconds = 0.0
        """Since its last request or its start."""
        self.is_ready = False
        self.wants_room = False
        self.rest = threading.Event()
        """Set when it is to sleep."""
        self.thread = threading.Thread(target=self._run, name=deployment.id)
        self._name = keeper.base_name
        self._loaded: EngineStart | None = None
        self._deaths = 0
        self._has_left = False
        seconds, attempt = host.settings.lease_seconds, deployment.attempt
        self._lease = Lease(
            deployment.id, seconds, asked_at, lambda s: deployments.renew(s, deployment.id, attempt, seconds)
        )

    @property
    def has_adapter(self) -> bool:
        """Whether it takes one of the engine's places for adapters."""
        return self._name != self.keeper.base_name

    @property
    def _request_name(self) -> str:
        """The name by which requests ask the engine for the model."""
        base = self.keeper.base_name
        return self.keeper.engine.request_name(base, self._name) if self.has_adapter else base

    @property
    def is_leaving(self) -> bool:
        """Whether its place will be free soon."""
        return self.rest.is_set() or self.status is DeploymentStatus.stopping

    def _run(self) -> None:
        extra = {"deployment_id": self.deployment.id}
        self.keeper.hold(self._lease)
        try:
            with self.host.leases.hold(self._lease):
                self._live()
        except StaleAttempt as stale:
            logger.warning("left to another worker: %s", stale, extra=extra)
        except DBAPIError as fault:
            logger.warning("left until its lease ends: %s", fault.orig, extra=extra)
        finally:
            self._move_out()

    def _live(self) -> None:
        try:
            model = self._resolve()
            self.keeper.open(model)
            while True:
                up = self._await_up()
                if self._move_in(up, model):
                    self._stay(up)
                self._tell_of_restart()
        except _Failed as failed:
            self._end(failed.error, failed.parity)
        except _ToLeave:
            self._leave()

    def _resolve(self) -> ResolvedModel:
        reference = self.deployment.model_id or self.deployment.base
        try:
            model = fetch_model(None, reference, self.host.settings)
        except LaunchError as refused:
            raise _Failed(engine_error(f"The model cannot be read: {refused}")) from refused
        if model.adapter is not None:
            self._name = self._adapter_name()
        return model

    def _adapter_name(self) -> str:
        """A name by content, new with each load: an adapter reloaded in place may meet stale caches."""
        with read_session() as session:
            sha256 = session.get_one(Model, self.deployment.model_id).sha256
        deployment = self.deployment
        return f"{deployment.name}-{sha256[:12]}-{deployment.id[-6:]}-{deployment.attempt}"

    def _await_up(self) -> EngineStart:
        while (up := self.keeper.up) is None:
            if self.keeper.closing.is_set():
                raise _Failed(self.keeper.fault or engine_error("The engine was stopped."))
            self._look()
        return up

    def _move_in(self, up: EngineStart, model: ResolvedModel) -> bool:
        """Put the model on the engine and open it to requests; False when the engine died meanwhile."""
        self._await_room()
        while not self.keeper.turn.acquire(timeout=POLL_SECONDS):
            self._look(0)
        try:
            self._load(up, model)
            parity = self._prove(up, model)
        except EngineRequestFailed as refused:
            if self._is_alive(up):
                raise _Failed(engine_error(f"The engine does not serve the model: {refused}")) from refused
            self._deaths += 1
            if self._deaths >= MOST_DEATHS:
                raise _Failed(
                    engine_error(f"The engine died twice as it took the model: {refused}")
                ) from refused
            return False
        finally:
            self.keeper.turn.release()
        self._open(up, parity)
        return True

    def _await_room(self) -> None:
        if not self.has_adapter:
            return
        while not self.keeper.take_room(self._name):
            self.wants_room = True
            self._look()
        self.wants_room = False

    def _load(self, up: EngineStart, model: ResolvedModel) -> None:
        if model.adapter is not None:
            self.keeper.engine.load_adapter(up.address, self._name, str(model.adapter))
        self._loaded = up
        self.keeper.engine.probe(up.address, self._request_name)

    def _prove(self, up: EngineStart, model: ResolvedModel) -> dict[str, Any] | None:
        """The parity report, if the deployment asks for one; raises _Failed when it insists."""
        mode = self.deployment.parity_mode
        if mode is ParityMode.off:
            return None
        report = check_parity(
            self.host.settings,
            self.deployment,
            ParityTarget(self.keeper.engine, up.address, self._request_name, model),
            self.keeper.folder,
            self._lease,
            lambda: self._look(0),
        )
        if not report["passed"] and mode is ParityMode.on:
            raise _Failed(engine_error(report["message"], ErrorCode.parity_failed), report)
        return report

    def _open(self, up: EngineStart, parity: dict[str, Any] | None) -> None:
        deployment = self.deployment
        with transaction() as session:
            self.is_ready = deployments.mark_ready(
                session, deployment.id, deployment.attempt, up.address, self._request_name, parity
            )
        deployment.parity = parity
        self.unused_seconds, self._deaths = 0.0, 0
        logger.info("ready", extra={"deployment_id": deployment.id, "address": up.address})

    def _stay(self, up: EngineStart) -> None:
        """Serve for as long as this start of the engine lasts."""
        while self.keeper.up is up:
            self._look()

    def _tell_of_restart(self) -> None:
        self.is_ready = False
        self._look(0)
        told = self.keeper.fault or engine_error("The engine is started again.")
        with transaction() as session:
            deployments.mark_restarting(session, self.deployment.id, self.deployment.attempt, told)

    def _look(self, seconds: float = POLL_SECONDS) -> None:
        """Wait a little; raises StaleAttempt when the lease is lost and _ToLeave when it is time to go."""
        if self._lease.lost.wait(seconds):
            raise StaleAttempt(f"lost the lease of {self.deployment.id}")
        stopping = self.status is DeploymentStatus.stopping or self.host.stopping.is_set()
        if stopping or (self.is_ready and self.rest.is_set()):
            raise _ToLeave

    def _is_alive(self, up: EngineStart) -> bool:
        """Whether the engine is still there; its keeper takes a moment to see that it is not."""
        deadline = time.monotonic() + 4 * POLL_SECONDS
        while self.keeper.up is up and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS / 5)
        return self.keeper.up is up

    def _leave(self) -> None:
        """The route goes first: requests by older tables are still answered before the model moves out."""
        deployment = self.deployment
        if self.status is DeploymentStatus.stopping:
            self._move_out()
            self._end(None)
            return
        step = deployments.release if self.host.stopping.is_set() else deployments.sleep
        with transaction() as session:
            moved = step(session, deployment.id, deployment.attempt)
        if not moved:
            self.status = DeploymentStatus.stopping
            self._leave()

    def _move_out(self) -> None:
        """Leave the engine, and wait until it has stopped if this was the last to leave."""
        if self._has_left:
            return
        self._has_left = True
        if self.is_ready and self._loaded is self.keeper.up and not self._lease.lost.is_set():
            self.keeper.let_go(self._lease)
            time.sleep(SETTLE_SECONDS)
        self._unload()
        self.keeper.let_go(self._lease)
        self.keeper.leave()
        if self.keeper.closing.is_set():
            self.keeper.gone.wait()

    def _unload(self) -> None:
        if not self.has_adapter:
            return
        if self._loaded is not None and self._loaded is self.keeper.up:
            try:
                self.keeper.engine.unload_adapter(self._loaded.address, self._name)
            except EngineRequestFailed as refused:
                logger.warning("cannot unload %s: %s", self._name, refused)
        self.keeper.give_room(self._name)

    def _end(self, error: dict[str, Any] | None, parity: dict[str, Any] | None = None) -> None:
        with transaction() as session:
            deployments.end(session, self.deployment.id, self.deployment.attempt, error, parity)
        logger.info("ended", extra={"deployment_id": self.deployment.id, "error": error})
