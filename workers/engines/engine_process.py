"""One engine's program, kept up for as long as a deployment needs it."""

import logging
import secrets
import shutil
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.tables import Deployment
from serving.engines import EngineConfig, find_engine
from serving.engines.child_engine import log_tail
from serving.engines.engine import START_TIMEOUT_SECONDS
from serving.http.addresses import is_private
from trainers.configs import EngineOptions, Queue
from trainers.runtime.error_codes import ErrorCode
from workers.engines.health import EngineHealth
from workers.hosts import guarded_process
from workers.hosts.guarded_process import GuardedProcess
from workers.hosts.lease import Lease
from workers.hosts.worker import WorkerContext
from workers.runs.launch import ResolvedModel, program_environment

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
# An engine that dies again and again is given up, since each restart costs a model load, unless it was well
# for so long in between.
MAX_RESTARTS = 10
WELL_SECONDS = 3600.0


@dataclass(frozen=True)
class EngineStart:
    """A start of the program that answers; the next start is another."""

    address: str


class EngineProcess:
    """Keeps one engine up from the first deployment that enters to the last that leaves."""

    def __init__(self, host: WorkerContext, first: Deployment, gpus: list[int]) -> None:
        self.host = host
        self.engine = find_engine(first.engine, host.settings.engine_programs.get(first.engine, []))
        self.options = EngineOptions.model_validate(first.options)
        self.base_name = f"base-{engine_key(first)}"
        self.up: EngineStart | None = None
        self.fault: dict[str, Any] | None = None
        """Why the engine was given up, or why it was last started again."""
        self.closing = threading.Event()
        self.gone = threading.Event()
        self.turn = threading.Lock()
        """Held by the deployment that moves in: should the engine die of it, it is known of which."""
        self._queue = Queue(first.queue)
        self._gpus = gpus
        self.folder = host.settings.data_dir / "engines" / f"{engine_key(first)}-{secrets.token_hex(3)}"
        self._lock = threading.Lock()
        self._inside = 1
        self._leases: set[Lease] = set()
        self._adapters: set[str] = set()
        self._child: GuardedProcess | None = None
        self._thread: threading.Thread | None = None

    def enter(self) -> bool:
        """Keep the engine up for one more; False when the last has left already."""
        with self._lock:
            if self.closing.is_set():
                return False
            self._inside += 1
            return True

    def leave(self) -> None:
        """After the last the engine stops."""
        with self._lock:
            self._inside -= 1
            if self._inside:
                return
            self.closing.set()
            if self._thread is None:
                self._clear()

    def hold(self, lease: Lease) -> None:
        """Let the program go on while this lease lasts."""
        with self._lock:
            self._leases.add(lease)
            if self._child is not None:
                lease.bind(self._child)

    def let_go(self, lease: Lease) -> None:
        """Answers under way end even if no lease is left to hold the program."""
        with self._lock:
            self._leases.discard(lease)
            if self._child is not None:
                lease.unbind(self._child)
                self._child.extend(self.host.settings.drain_seconds + 2 * self.engine.stop_seconds)

    def open(self, model: ResolvedModel) -> None:
        """Start the engine on the base of this model, unless it is started already."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, args=(model,), name=self.base_name)
                self._thread.start()

    def take_room(self, name: str) -> bool:
        """Whether there is room for one more adapter, which is the caller's then."""
        with self._lock:
            if name not in self._adapters and len(self._adapters) >= self.options.max_adapters:
                return False
            self._adapters.add(name)
            return True

    def give_room(self, name: str) -> None:
        """Let another adapter have the place."""
        with self._lock:
            self._adapters.discard(name)

    @property
    def is_busy(self) -> bool:
        """Whether answers are under way, as far as the engine tells."""
        up = self.up
        return up is not None and bool(self.engine.running(up.address))

    def _run(self, model: ResolvedModel) -> None:
        deaths = 0
        try:
            while not self.closing.is_set():
                started_at = time.monotonic()
                fault, came_up = self._serve(model)
                if fault is None:
                    continue
                deaths = 1 if time.monotonic() - started_at > WELL_SECONDS else deaths + 1
                self.fault = engine_error(fault)
                logger.warning("engine ended", extra={"engine": self.base_name, "error": fault})
                if not came_up or deaths > MAX_RESTARTS:
                    return
                self.closing.wait(min(2.0 ** (deaths - 1), 60))
        finally:
            # No further deployment may enter an engine that has been given up.
            with self._lock:
                self.closing.set()
            self._clear()

    def _serve(self, model: ResolvedModel) -> tuple[str | None, bool]:
        """Run the program once: why it is to be started again, if it is, and whether it ever answered."""
        with self._lock:
            seconds = max((lease.seconds_left for lease in self._leases), default=0.0)
        if not seconds:
            self.closing.wait(POLL_SECONDS)
            return None, False
        try:
            address = self._address()
        except OSError as refused:
            return f"TUNESMITH_ENGINE_HOST cannot be used: {refused}", False
        try:
            child = self._start(model, address, seconds)
        except ValueError as refused:
            return f"The engine {self.engine.kind} cannot be started: {refused}", False
        try:
            fault = self._await_up(child, address)
            if fault is not None or self.closing.is_set():
                return fault, False
            self.up = EngineStart(address)
            logger.info("engine is up", extra={"engine": self.base_name, "address": address})
            fault = self._watch(
                child, EngineHealth(self.engine, address, self.base_name, self._probe_seconds)
            )
            self.up = None
            if fault is None:
                self._drain(child, address)
            return fault, True
        finally:
            self._end(child)

    def _address(self) -> str:
        """Where the engine is to listen; a name that means a public address is refused."""
        host = self.host.settings.engine_host
        family, _, _, _, resolved = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        if not is_private(str(resolved[0])):
            raise OSError(f"{host} is {resolved[0]}, which is no private address")
        with socket.socket(family) as probe:
            probe.bind((resolved[0], 0))
            return f"http://{host}:{probe.getsockname()[1]}"

    def _start(self, model: ResolvedModel, address: str, seconds: float) -> GuardedProcess:
        host, _, port = address.removeprefix("http://").rpartition(":")
        template_from = str(model.adapter or "")
        serve = EngineConfig(model.base, self.base_name, host, int(port), {}, self.options, template_from)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        child = guarded_process.start_guarded_process(
            self.engine.command(serve),
            log=self._log,
            environment=program_environment(self._queue, self._gpus) | self.engine.environment(serve),
            seconds=seconds,
        )
        with self._lock:
            self._adapters.clear()
            self._child = child
            for lease in self._leases:
                lease.bind(child)
        return child

    def _await_up(self, child: GuardedProcess, address: str) -> str | None:
        """Why the engine cannot be had; None once it answers, or when nobody needs it any more."""
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while (exit_status := child.wait(POLL_SECONDS)) is None:
            if self.closing.is_set() or self.engine.is_up(address):
                return None
            if time.monotonic() > deadline:
                return f"The engine was not ready after {START_TIMEOUT_SECONDS:.0f} s."
        return f"The engine ended with status {exit_status} before it was ready: {self._last_words()}"

    def _watch(self, child: GuardedProcess, health: EngineHealth) -> str | None:
        """Wait while the engine is well: why it is to be started again; None when nobody needs it."""
        while child.wait(POLL_SECONDS) is None:
            if self.closing.is_set():
                return None
            if (fault := health.fault()) is not None:
                return fault
        return f"The engine ended: {self._last_words()}"

    def _drain(self, child: GuardedProcess, address: str) -> None:
        """Let the answers under way end, then ask the program to."""
        deadline = time.monotonic() + self.host.settings.drain_seconds
        while self.engine.running(address) and time.monotonic() < deadline:
            if child.wait(POLL_SECONDS / 2) is not None:
                return
        child.stop()
        child.wait(self.engine.stop_seconds)

    def _end(self, child: GuardedProcess) -> None:
        with self._lock:
            self._child = None
            for lease in self._leases:
                lease.unbind(child)
        self.up = None
        child.kill()

    def _clear(self) -> None:
        """Give back what the engine held; what a failed one has printed stays."""
        if self.fault is None:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.host.devices.give_back(self._gpus)
        self.gone.set()

    @property
    def _probe_seconds(self) -> float:
        return self.host.settings.probe_seconds

    @property
    def _log(self) -> Path:
        return self.folder / "log.txt"

    def _last_words(self) -> str:
        return log_tail(self._log, lines=1)


def engine_key(deployment: Deployment) -> str:
    """What deployments of one engine have in common; one without a key shares with nobody."""
    return deployment.engine_key or deployment.id


def engine_error(message: str, code: ErrorCode = ErrorCode.deployment_failed) -> dict[str, Any]:
    """A fault as a deployment shows it."""
    hint = "The engine's whole log lies on the worker's host, in its data directory under engines/."
    return {"code": code, "message": message, "hint": hint}
