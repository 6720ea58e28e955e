"""Deployment runner: carries one deployment from claim to end on an engine that it may share."""

import hashlib
import logging
import threading
import time
from pathlib import Path
from typing import Any

from app.deployments import lifecycle as deployments
from app.runs.attempt_outcome import HUB_RETRY_SECONDS
from app.runs.lifecycle import StaleAttempt
from app.scheduling.incidents import report_failure
from app.storage.database import read_session, transaction
from app.tables import Deployment, DeploymentStatus, Model
from serving.engines import EngineRequestFailed
from trainers.configs import ParityMode
from trainers.modeling.embedding.recipe import EmbeddingModelUnsupported
from trainers.rendering.template_proof import prove_folder
from trainers.rendering.template_renderer import ChatTemplateError
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import TunesmithError
from workers.engines.engine_process import EngineError, EngineProcess, EngineStart
from workers.engines.engine_start import POLL_SECONDS, QUICK_POLL_SECONDS
from workers.engines.parity_check import ParityTarget, check_parity
from workers.engines.recipe_check import check_recipe
from workers.hosts.lease import Lease
from workers.hosts.worker import WorkerContext
from workers.inputs.errors import LaunchError
from workers.inputs.models import ResolvedModel, fetch_model

logger = logging.getLogger(__name__)

# A gateway may route by a table that it read before the deployment left: longer than it uses such a table.
ROUTE_EXPIRY_SECONDS = 2.0
# An engine that crashes while it loads a model is not given that model a third time: others share it.
MAX_LOAD_CRASHES = 2


class _Leave(Exception):
    """The deployment must leave its engine."""


class ParityFailed(EngineError):
    """The served model differs from the trained one."""

    code = ErrorCode.parity_failed


class _DeploymentFailed(Exception):
    """The deployment cannot be served."""

    def __init__(self, error: TunesmithError, parity: dict[str, Any] | None = None) -> None:
        super().__init__(error.message)
        self.error = error
        self.parity = parity


class DeploymentRunner:
    """A deployment that this worker holds, and the thread that runs it."""

    def __init__(
        self,
        worker: WorkerContext,
        engine_process: EngineProcess,
        deployment: Deployment,
        requested_at: float,
    ) -> None:
        self.worker = worker
        self.engine_process = engine_process
        self.deployment = deployment
        self.status = deployment.status
        self.unused_seconds = 0.0
        """Since the last request, or since the deployment became ready."""
        self.is_ready = False
        self.is_waiting_for_slot = False
        self.sleep_requested = threading.Event()
        self.thread = threading.Thread(target=self._run, name=deployment.id)
        self._name = engine_process.base_name
        self._loaded_on: EngineStart | None = None
        self._load_crashes = 0
        self._has_left = False
        seconds, attempt = worker.settings.lease_seconds, deployment.attempt
        self._lease = Lease(
            deployment.id,
            seconds,
            requested_at,
            lambda s: deployments.renew(s, deployment.id, attempt, seconds),
        )

    @property
    def has_adapter(self) -> bool:
        """Whether the deployment needs one of the engine's adapter slots."""
        return self._name != self.engine_process.base_name

    @property
    def is_leaving(self) -> bool:
        """Whether the deployment is about to free its slot."""
        return self.sleep_requested.is_set() or self.status is DeploymentStatus.stopping

    @property
    def _request_name(self) -> str:
        """The model name that the engine expects in requests."""
        base = self.engine_process.base_name
        return self.engine_process.engine.request_name(base, self._name) if self.has_adapter else base

    def _run(self) -> None:
        extra = {"deployment_id": self.deployment.id}
        self.engine_process.bind_lease(self._lease)
        try:
            with self.worker.leases.hold(self._lease):
                self._serve()
        except StaleAttempt as stale:
            logger.warning("the deployment belongs to another worker now: %s", stale, extra=extra)
        except Exception as error:
            # Its status is written by whichever worker claims it once this lease has ended.
            name = f"deployment {self.deployment.id}"
            report_failure("deployment", name, error, "; it is released when its lease ends")
        finally:
            self._leave_engine()

    def _serve(self) -> None:
        try:
            model = self._fetch_model()
            self.engine_process.start(model)
            while True:
                start = self._wait_for_engine()
                if self._enter_engine(start, model):
                    while self.engine_process.current_start is start:
                        self._poll()
                self._report_restart()
        except _DeploymentFailed as failed:
            self._end(failed.error.as_dict(), failed.parity)
        except _Leave:
            self._leave()

    def _fetch_model(self) -> ResolvedModel:
        try:
            model = self._find_model()
            # Before an engine renders with the templates, some engines in their own process.
            for folder in (Path(model.base), model.adapter):
                if folder is not None and folder.is_dir():
                    prove_folder(folder)
            check_recipe(self.deployment, model)
        except (LaunchError, ChatTemplateError, EmbeddingModelUnsupported) as error:
            raise _DeploymentFailed(error) from error
        if model.adapter is not None:
            self._name = self._adapter_name()
        return model

    def _find_model(self) -> ResolvedModel:
        """Fetch the model; a hub that does not respond is the deployment's error while it is tried again."""
        deployment = self.deployment
        reference = deployment.model_id or deployment.base
        for seconds in HUB_RETRY_SECONDS:
            try:
                return fetch_model(None, reference, self.worker.settings, self._poll_download)
            except LaunchError as error:
                if error.code is not ErrorCode.hub_unreachable:
                    raise
                with transaction() as session:
                    deployments.report_wait(session, deployment.id, deployment.attempt, error.as_dict())
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                self._poll()
        return fetch_model(None, reference, self.worker.settings, self._poll_download)

    def _poll_download(self) -> bool:
        self._poll(0)
        return False

    def _adapter_name(self) -> str:
        """Return a name that is unique to the weights and to this load: engines cache prefixes by name."""
        deployment = self.deployment
        if deployment.model_id is None:
            weights = hashlib.sha256(deployment.base.encode()).hexdigest()
        else:
            with read_session() as session:
                weights = session.get_one(Model, deployment.model_id).sha256
        # sglang separates the adapter from its base by a colon, which names of fine-tuned models contain.
        name = deployment.name.replace(":", "-")
        return f"{name}-{weights[:12]}-{deployment.id[-6:]}-{deployment.attempt}"

    def _wait_for_engine(self) -> EngineStart:
        while (start := self.engine_process.current_start) is None:
            if self.engine_process.closing.is_set():
                raise _DeploymentFailed(
                    self.engine_process.last_error or EngineError("The engine was stopped.")
                )
            self._poll(QUICK_POLL_SECONDS)
        return start

    def _enter_engine(self, start: EngineStart, model: ResolvedModel) -> bool:
        """Load and check the model, and accept requests; return False when the engine crashed meanwhile."""
        self._wait_for_slot()
        while not self.engine_process.load_lock.acquire(timeout=POLL_SECONDS):
            self._poll(0)
        try:
            self._load(start, model)
            parity = self._check_parity(start, model)
        except EngineRequestFailed as error:
            if self._is_running(start):
                raise _DeploymentFailed(
                    EngineError(f"The engine does not serve the model: {error}")
                ) from error
            self._load_crashes += 1
            if self._load_crashes >= MAX_LOAD_CRASHES:
                message = f"The engine crashed {self._load_crashes} times while it loaded the model: {error}"
                raise _DeploymentFailed(EngineError(message)) from error
            return False
        finally:
            self.engine_process.load_lock.release()
        self._mark_ready(start, parity)
        return True

    def _wait_for_slot(self) -> None:
        if not self.has_adapter:
            return
        while not self.engine_process.reserve_adapter_slot(self._name):
            self.is_waiting_for_slot = True
            self._poll()
        self.is_waiting_for_slot = False

    def _load(self, start: EngineStart, model: ResolvedModel) -> None:
        engine = self.engine_process.engine
        if model.adapter is not None:
            engine.load_adapter(start.address, self._name, str(model.adapter))
        self._loaded_on = start
        timeout_seconds = self.worker.settings.probe_timeout_seconds
        engine.probe(start.address, self._request_name, timeout_seconds, self.deployment.task)

    def _check_parity(self, start: EngineStart, model: ResolvedModel) -> dict[str, Any] | None:
        """Return the parity report, or None if parity is off; raises _DeploymentFailed in mode `on`."""
        mode, earlier = self.deployment.parity_mode, self.deployment.parity
        if mode is ParityMode.off:
            return None
        if self.deployment.is_on_demand and earlier is not None and earlier["passed"]:
            # Requests wake it often, and its weights, its engine and its options never change.
            return earlier
        report = check_parity(
            self.worker,
            self.deployment,
            ParityTarget(self.engine_process.engine, start.address, self._request_name, model),
            self.engine_process.folder,
            self._lease,
            lambda: self._poll(0),
        )
        if not report["passed"] and mode is ParityMode.on:
            raise _DeploymentFailed(ParityFailed(report["message"]), report)
        return report

    def _mark_ready(self, start: EngineStart, parity: dict[str, Any] | None) -> None:
        deployment = self.deployment
        with transaction() as session:
            self.is_ready = deployments.mark_ready(
                session, deployment.id, deployment.attempt, start.address, self._request_name, parity
            )
        self.worker.notify_deployments()
        self.engine_process.add_ready_name(self._request_name)
        deployment.parity = parity
        self.unused_seconds, self._load_crashes = 0.0, 0
        logger.info("deployment is ready", extra={"deployment_id": deployment.id, "address": start.address})

    def _report_restart(self) -> None:
        self.is_ready = False
        self.engine_process.remove_ready_name(self._request_name)
        self._poll(0)
        error = self.engine_process.last_error or EngineError("The engine is being restarted.")
        with transaction() as session:
            deployments.mark_restarting(session, self.deployment.id, self.deployment.attempt, error.as_dict())

    def _poll(self, seconds: float = POLL_SECONDS) -> None:
        """Wait; raises StaleAttempt when the lease is lost, and _Leave when the deployment must leave."""
        if self._lease.lost.wait(seconds):
            raise StaleAttempt(f"lost the lease of {self.deployment.id}")
        is_stopping = self.status is DeploymentStatus.stopping or self.worker.stopping.is_set()
        if is_stopping or (self.is_ready and self.sleep_requested.is_set()):
            raise _Leave

    def _is_running(self, start: EngineStart) -> bool:
        """Return whether the engine is still running; its thread needs up to one poll to notice a crash."""
        deadline = time.monotonic() + 4 * POLL_SECONDS
        while self.engine_process.current_start is start and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS / 5)
        return self.engine_process.current_start is start

    def _leave(self) -> None:
        """Close the route before the model is unloaded: gateways still send requests for a moment."""
        deployment = self.deployment
        if self.status is DeploymentStatus.stopping:
            self._leave_engine()
            self._end(None)
            return
        change_status = deployments.release if self.worker.stopping.is_set() else deployments.sleep
        with transaction() as session:
            has_changed = change_status(session, deployment.id, deployment.attempt)
        if not has_changed:  # Someone has asked to stop the deployment since the last poll.
            self.status = DeploymentStatus.stopping
            self._leave()

    def _leave_engine(self) -> None:
        """Unload the model and release the engine; after the last user, wait until the engine has stopped."""
        if self._has_left:
            return
        self._has_left = True
        self.engine_process.remove_ready_name(self._request_name)
        is_loaded = self._loaded_on is not None and self._loaded_on is self.engine_process.current_start
        if self.is_ready and is_loaded and not self._lease.lost.is_set():
            self.engine_process.unbind_lease(self._lease)
            time.sleep(ROUTE_EXPIRY_SECONDS)
        try:
            self._unload()
        finally:
            self.engine_process.unbind_lease(self._lease)
            self.engine_process.release()
        if self.engine_process.closing.is_set():
            self.engine_process.stopped.wait()

    def _unload(self) -> None:
        if not self.has_adapter:
            return
        if self._loaded_on is not None and self._loaded_on is self.engine_process.current_start:
            try:
                self.engine_process.engine.unload_adapter(self._loaded_on.address, self._name)
            except EngineRequestFailed as error:
                logger.warning("cannot unload %s: %s", self._name, error)
        self.engine_process.release_adapter_slot(self._name)

    def _end(self, error: dict[str, Any] | None, parity: dict[str, Any] | None = None) -> None:
        with transaction() as session:
            deployments.end(session, self.deployment.id, self.deployment.attempt, error, parity)
        self.worker.notify_deployments()
        logger.info("deployment ended", extra={"deployment_id": self.deployment.id, "error": error})
