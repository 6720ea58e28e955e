"""Engine process: one engine, kept running while at least one deployment uses it."""

import logging
import secrets
import shutil
import threading
import time
from dataclasses import dataclass

from app.scheduling.incidents import describe_error
from app.tables import Deployment
from serving.engines import EngineConfig, find_engine
from serving.engines.child_engine import log_tail
from trainers.configs import EngineOptions
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import TunesmithError
from workers.engines.engine_start import (
    LOG,
    POLL_SECONDS,
    EngineProcessFailed,
    hold_address,
    start_engine,
    wait_until_ready,
)
from workers.engines.health import EngineHealth
from workers.hosts.devices import Devices
from workers.hosts.guarded_process import GuardedProcess
from workers.hosts.lease import Lease
from workers.hosts.worker import WorkerContext
from workers.inputs.models import ResolvedModel

logger = logging.getLogger(__name__)

# Each restart costs a model load. The count starts again after STABLE_SECONDS without a crash.
MAX_RESTARTS = 10
STABLE_SECONDS = 3600.0
MAX_BACKOFF_SECONDS = 60.0


class EngineError(TunesmithError):
    """The reason why a deployment's engine cannot serve it."""

    code = ErrorCode.deployment_failed

    def __init__(self, message: str) -> None:
        super().__init__(
            message,
            "Read the engine's whole log: it is on the worker's host, in `engines/` of its data directory.",
        )


@dataclass(frozen=True)
class EngineStart:
    """One start of the program that became ready; compared by identity to detect a restart."""

    address: str


class EngineProcess:
    """An engine that runs from the first deployment that acquires it until the last one releases it."""

    def __init__(self, worker: WorkerContext, first: Deployment, devices: Devices) -> None:
        self.worker = worker
        self.engine = find_engine(first.engine, worker.settings.engine_commands.get(first.engine, []))
        self.options = EngineOptions.model_validate(first.options)
        self.task, self.pooling = first.task, first.pooling
        self.base_name = f"base-{engine_key(first)}"
        self.folder = worker.settings.data_dir / "engines" / f"{engine_key(first)}-{secrets.token_hex(3)}"
        self.current_start: EngineStart | None = None
        """None while the engine is not ready."""
        self.last_error: EngineError | None = None
        """Why the engine was last restarted, or why it was given up."""
        self.closing = threading.Event()
        self.stopped = threading.Event()
        self.load_lock = threading.Lock()
        """Held by the deployment that loads its model, so that a crash can be attributed to that model."""
        self._devices = devices
        self._lock = threading.Lock()
        self._n_users = 1
        self._leases: set[Lease] = set()
        self._adapters: set[str] = set()
        self._ready_names: set[str] = set()
        self._process: GuardedProcess | None = None
        self._thread: threading.Thread | None = None

    @property
    def n_gpus(self) -> int:
        """The number of GPUs that it holds."""
        return len(self._devices.gpus)

    def acquire(self) -> bool:
        """Add a user; return False when the last one has already released the engine."""
        with self._lock:
            if self.closing.is_set():
                return False
            self._n_users += 1
            return True

    def release(self) -> None:
        """Remove a user; the engine stops after the last one."""
        with self._lock:
            self._n_users -= 1
            if self._n_users:
                return
            self.closing.set()
            if self._thread is None:
                self._clean_up()

    def bind_lease(self, lease: Lease) -> None:
        """Keep the program running while this lease, or another bound one, is renewed."""
        with self._lock:
            self._leases.add(lease)
            if self._process is not None:
                lease.bind(self._process)

    def unbind_lease(self, lease: Lease) -> None:
        """Remove a lease; even without one, the program gets the time to finish its current requests."""
        with self._lock:
            self._leases.discard(lease)
            if self._process is not None:
                lease.unbind(self._process)
                self._process.extend(self.worker.settings.drain_seconds + 2 * self.engine.stop_seconds)

    def start(self, model: ResolvedModel) -> None:
        """Start the engine with the model's base, unless it has been started."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, args=(model,), name=self.base_name)
                self._thread.start()

    def reserve_adapter_slot(self, name: str) -> bool:
        """Reserve a slot for one more adapter; return False when all are taken."""
        with self._lock:
            if name not in self._adapters and len(self._adapters) >= self.options.max_adapters:
                return False
            self._adapters.add(name)
            return True

    def release_adapter_slot(self, name: str) -> None:
        """Free the adapter's slot."""
        with self._lock:
            self._adapters.discard(name)

    def add_ready_name(self, name: str) -> None:
        """Probe the model with this name in requests from now on."""
        with self._lock:
            self._ready_names.add(name)

    def remove_ready_name(self, name: str) -> None:
        """Stop probing the model."""
        with self._lock:
            self._ready_names.discard(name)

    @property
    def is_busy(self) -> bool:
        """Whether the engine reports requests in progress."""
        start = self.current_start
        return start is not None and bool(self.engine.count_requests(start.address))

    def _run(self, model: ResolvedModel) -> None:
        n_failures = 0
        try:
            while not self.closing.is_set():
                started_at = time.monotonic()
                try:
                    self._run_program(model)
                except EngineProcessFailed as failure:
                    was_stable = time.monotonic() - started_at > STABLE_SECONDS
                    n_failures = 1 if was_stable else n_failures + 1
                    self.last_error = EngineError(str(failure))
                    logger.warning("engine failed", extra={"engine": self.base_name, "error": str(failure)})
                    if not failure.was_ready or n_failures > MAX_RESTARTS:
                        return
                    self.closing.wait(min(2.0 ** (n_failures - 1), MAX_BACKOFF_SECONDS))
        except Exception as error:
            logger.exception("the engine cannot be run", extra={"engine": self.base_name})
            self.last_error = EngineError(f"The engine cannot be run: {describe_error(error)}.")
        finally:
            # No deployment may acquire an engine that has been given up.
            with self._lock:
                self.closing.set()
            self._clean_up()

    def _run_program(self, model: ResolvedModel) -> None:
        """Run the program once, until no deployment needs it; raises EngineProcessFailed."""
        with self._lock:
            seconds = max((lease.seconds_left for lease in self._leases), default=0.0)
        if not seconds:
            self.closing.wait(POLL_SECONDS)
            return
        address, port = hold_address(self.worker.settings.engine_host)
        with port:
            self._run_at(model, address, seconds)

    def _run_at(self, model: ResolvedModel, address: str, seconds: float) -> None:
        process = self._start_program(model, address, seconds)
        try:
            if wait_until_ready(self.engine, process, address, self.folder, self.closing.is_set):
                self.current_start = EngineStart(address)
                logger.info("engine is ready", extra={"engine": self.base_name, "address": address})
                self._monitor(process, address)
                self.current_start = None
                self._drain(process, address)
        finally:
            self.current_start = None
            with self._lock:
                self._process = None
                for lease in self._leases:
                    lease.unbind(process)
            process.kill()

    def _start_program(self, model: ResolvedModel, address: str, seconds: float) -> GuardedProcess:
        host, _, port = address.removeprefix("http://").rpartition(":")
        template_from = str(model.adapter or "")
        config = EngineConfig(
            model.base,
            self.base_name,
            host,
            int(port),
            options=self.options,
            template_from=template_from,
            task=self.task,
            pooling=self.pooling,
        )
        process = start_engine(
            self.engine, config, self.folder, self._devices, seconds, self.worker.fork_server
        )
        with self._lock:
            self._adapters.clear()
            self._ready_names.clear()
            self._process = process
            for lease in self._leases:
                lease.bind(process)
        return process

    def _monitor(self, process: GuardedProcess, address: str) -> None:
        """Wait until no deployment needs the engine; raises EngineProcessFailed when it crashes or hangs."""
        settings = self.worker.settings
        health = EngineHealth(
            self.engine,
            address,
            self._list_probed_names,
            settings.probe_seconds,
            settings.probe_timeout_seconds,
            self.task,
        )
        while process.wait(POLL_SECONDS) is None:
            if self.closing.is_set():
                return
            if (reason := health.check()) is not None:
                raise EngineProcessFailed(reason, was_ready=True)
        raise EngineProcessFailed(
            f"The engine exited: {log_tail(self.folder / LOG, lines=1)}", was_ready=True
        )

    def _list_probed_names(self) -> set[str]:
        with self._lock:
            return set(self._ready_names) or {self.base_name}

    def _drain(self, process: GuardedProcess, address: str) -> None:
        """Wait until the current requests have finished, then ask the program to stop."""
        deadline = time.monotonic() + self.worker.settings.drain_seconds
        while self.engine.count_requests(address) and time.monotonic() < deadline:
            if process.wait(POLL_SECONDS / 2) is not None:
                return
        process.stop()
        process.wait(self.engine.stop_seconds)

    def _clean_up(self) -> None:
        """Release the devices; the folder of a failed engine is kept for its log."""
        if self.last_error is None:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.worker.release_devices(self._devices)
        self.stopped.set()


def engine_key(deployment: Deployment) -> str:
    """Return the key that deployments on one engine share; a deployment without a key shares with none."""
    return deployment.engine_key or deployment.id
