"""The engines of a run whose program sends requests to them."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.workers.host_hardware import describe_devices
from serving.engines import EngineConfig, EngineRequestFailed, find_engine
from serving.engines.child_engine import log_tail
from trainers.configs import AdaptedModel, EngineClientConfig, EvaluateConfig
from trainers.configs.engines import RunningEngine
from trainers.configs.references import get_base_model
from trainers.evaluation.checkpoints import restore_completions
from trainers.evaluation.response_log import has_all_responses
from trainers.rendering.template_proof import prove_folder, read_templates
from trainers.runtime.errors import EngineFailed
from workers.engines.engine_start import (
    LOG,
    EngineProcessFailed,
    hold_address,
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


@dataclass(frozen=True)
class ModelGroup:
    """Models of a stage that one engine serves: a base, and adapters on it."""

    base: str
    roles: list[str]
    """The names in the stage of the models that are the base itself."""
    adapters: dict[str, str]
    """The folders of adapters by the names of their models in the stage."""

    @property
    def names(self) -> list[str]:
        """The names of all models of the group in the stage."""
        return [*self.roles, *self.adapters]


def find_incomplete_models(config: EngineClientConfig, run_dir: Path) -> list[str]:
    """Return the names of the models that need an engine, because responses of theirs are missing."""
    if not isinstance(config, EvaluateConfig):
        return list(config.engine_models)
    restore_completions(run_dir / config.completions_file)
    return [role for role in config.engine_models if not has_all_responses(config, role, run_dir)]


def group_models(config: EngineClientConfig, models: Mapping[str, Any]) -> list[ModelGroup]:
    """Return the engines that the models need, one after another: those with the same base share one.

    An engine with one chat template for all names is not shared by models with different templates.
    """
    groups: dict[Any, ModelGroup] = {}
    for role, model in models.items():
        base = get_base_model(model)
        adapter = model.adapter if isinstance(model, AdaptedModel) else None
        template = _read_template(adapter, base) if config.engine.has_single_template else None
        group = groups.setdefault((base, json.dumps(template)), ModelGroup(base, [], {}))
        if adapter is None:
            group.roles.append(role)
        else:
            group.adapters[role] = adapter
    return list(groups.values())


class RunEngine:
    """An engine as a guarded process, which ends with the run, its lease, or its worker."""

    def __init__(
        self, config: EngineClientConfig, group: ModelGroup, run_dir: Path, worker: WorkerContext
    ) -> None:
        adapters = {f"{ADAPTER_NAME}-{role}": folder for role, folder in group.adapters.items()}
        self.url, self._port = hold_address(HOST)
        self._engine = find_engine(config.engine, worker.settings.engine_commands.get(config.engine, []))
        # No other adapter is loaded while the run lasts.
        options = config.options.model_copy(update={"max_adapters": len(adapters)})
        self._config = EngineConfig(group.base, BASE_NAME, HOST, self._port.number, adapters, options)
        self._models = dict.fromkeys(group.roles, BASE_NAME) | {
            role: self._engine.request_name(BASE_NAME, f"{ADAPTER_NAME}-{role}") for role in group.adapters
        }
        self._run_dir = run_dir
        self._fork_server = worker.fork_server
        self._folder = run_dir / ".engine"
        self._process: GuardedProcess | None = None

    def describe(self, devices: Devices) -> dict[str, RunningEngine]:
        """Return the engine as it is named to the program, for each of its models."""
        gpus = [gpu.name for gpu in devices.gpus]
        hardware = describe_devices(gpus) if gpus else None
        return {
            role: RunningEngine(url=self.url, model=name, hardware=hardware)
            for role, name in self._models.items()
        }

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
            for name in self._models.values():
                self._engine.probe(self.url, name)
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
        # An earlier engine of the run may have left its log.
        with (self._folder / LOG).open("rb") as own, (self._run_dir / ENGINE_LOG).open("ab") as log:
            shutil.copyfileobj(own, log)
        (self._folder / LOG).unlink()

    def kill(self) -> None:
        """Kill the engine, if it is still running, and release its port."""
        self._port.release()
        if self._process is not None:
            self._process.kill()

    def _log_excerpt(self) -> str:
        log = self._folder / LOG
        return f"\nThe end of its log:\n{log_tail(log)}" if log.exists() else ""


def _read_template(adapter: str | None, base: str) -> dict[str, str]:
    own = read_templates(Path(adapter)) if adapter is not None else {}
    return own or (read_templates(Path(base)) if Path(base).is_dir() else {})
