"""The engine of a run whose program sends requests to one."""

from collections.abc import Callable
from pathlib import Path

from serving.engines import EngineConfig, EngineRequestFailed, find_engine
from serving.engines.child_engine import latest_model_name, log_tail
from trainers.configs import AdaptedModel, EngineClientConfig
from trainers.configs.references import get_base_model
from trainers.rendering.template_proof import prove_folder
from trainers.runtime.errors import EngineFailed
from workers.engines.engine_start import (
    LOG,
    EngineProcessFailed,
    find_free_address,
    start_engine,
    wait_until_ready,
)
from workers.hosts.devices import Devices
from workers.hosts.guarded_process import GuardedProcess
from workers.hosts.lease import Lease
from workers.hosts.worker import WorkerContext
from workers.runs.results import ENGINE_LOG

# The program runs on the same host.
HOST = "127.0.0.1"
BASE_NAME, ADAPTER_NAME = "base", "adapter"
LOG_HINT = f"Read the engine's whole log: GET /api/v1/runs/RUN/files/{ENGINE_LOG}."


class RunEngine:
    """An engine as a guarded process, which ends with the run, its lease, or its worker."""

    def __init__(self, config: EngineClientConfig, run_dir: Path, worker: WorkerContext) -> None:
        adapters = {ADAPTER_NAME: config.model.adapter} if isinstance(config.model, AdaptedModel) else {}
        self.url = find_free_address(HOST)
        port = int(self.url.rpartition(":")[2])
        self._engine = find_engine(config.engine, worker.settings.engine_commands.get(config.engine, []))
        self._config = EngineConfig(
            get_base_model(config.model), BASE_NAME, HOST, port, adapters, config.options
        )
        self.model = latest_model_name(self._engine, self._config)
        """The name of the model in requests."""
        self._run_dir = run_dir
        self._fork_server = worker.fork_server
        self._folder = run_dir / ".engine"
        self._process: GuardedProcess | None = None

    def start(self, devices: Devices, lease: Lease, handle_stop: Callable[[GuardedProcess], bool]) -> bool:
        """Start the engine and wait until it generates.

        `handle_stop` is polled meanwhile; when it returns True, the engine has been asked to stop and this
        returns False.

        Raises:
            ChatTemplateError: The model's chat template cannot be used.
            EngineFailed: The engine did not start, or does not generate.
        """
        kind = self._engine.kind
        for folder in (self._config.model, *self._config.adapters.values()):
            if Path(folder).is_dir():
                prove_folder(Path(folder))
        try:
            process = start_engine(
                self._engine, self._config, self._folder, devices, lease.seconds_left, self._fork_server
            )
            self._process = process
            lease.bind(process)
            if not wait_until_ready(
                self._engine, process, self.url, self._folder, lambda: handle_stop(process)
            ):
                return False
            self._engine.probe(self.url, self.model)
        except EngineProcessFailed as error:
            raise EngineFailed(f"The engine {kind} failed. {error}{self._log_excerpt()}", LOG_HINT) from error
        except EngineRequestFailed as error:
            raise EngineFailed(
                f"The engine {kind} is up but does not generate: {error}{self._log_excerpt()}", LOG_HINT
            ) from error
        return True

    def stop(self) -> None:
        """Stop the engine, kill it if it does not end in time, and keep its log with the run's files."""
        if self._process is None:
            return
        self._process.stop()
        self._process.wait(self._engine.stop_seconds)
        self._process.kill()
        self._process = None
        (self._folder / LOG).replace(self._run_dir / ENGINE_LOG)

    def kill(self) -> None:
        """Kill the engine, if it is still running."""
        if self._process is not None:
            self._process.kill()

    def _log_excerpt(self) -> str:
        log = self._folder / LOG
        return f"\nThe end of its log:\n{log_tail(log)}" if log.exists() else ""
