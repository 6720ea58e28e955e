"""Preparation of a claimed run: fetch its inputs, write its config, and build its command."""

import contextlib
import errno
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from app.checkpoints.service import find_resumed_checkpoint
from app.settings import Settings
from app.storage.database import read_session
from app.storage.manifest import MANIFEST, ArtifactCorrupt
from app.storage.opening import get_store
from app.tables import Dataset, Run
from trainers.configs import (
    AnyStage,
    BatchConfig,
    CompareConfig,
    EngineClientConfig,
    EvaluateConfig,
    ExportConfig,
    GateConfig,
    ImportConfig,
    LmEvalConfig,
    PrepareConfig,
    RecordConfig,
    SelectConfig,
    TrainingConfig,
)
from trainers.configs.engines import RunningEngine
from trainers.configs.references import ModelField, find_references, replace_references
from trainers.evaluation.checkpoints import list_responses
from trainers.runtime import launch_command
from trainers.runtime import run_dir as files
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.launch_command import NodePlace
from trainers.runtime.verified_files import hash_file
from workers.batches.inputs import prepare_batch
from workers.hosts.devices import NO_DEVICES, Devices
from workers.hosts.environments import program_environment, row_cache_environment, training_environment
from workers.hosts.resource_limits import ResourceLimits
from workers.hosts.stage_limits import choose_limits
from workers.inputs.checkpoints import fetch_any_model
from workers.inputs.datasets import fetch_dataset, fetch_source, find_dataset
from workers.inputs.engine_program import place_engine_program
from workers.inputs.errors import STORE_HINT, InputCorrupt, InputUnreadable, LaunchError
from workers.inputs.evaluations import fetch_evaluation, fetch_gate_inputs
from workers.inputs.kernels import place_kernels
from workers.inputs.lineage import find_origins
from workers.inputs.metric_programs import place_metric_programs
from workers.inputs.models import ResolvedModel, fetch_import
from workers.inputs.selection import read_tries
from workers.inputs.served_models import served_model_environment, wake_served_models
from workers.nodes.address import network_environment
from workers.runs.later_stages import write_later_stages
from workers.runs.recovery import DISK_FULL_HINT, count_oom_kills


class InputTooLarge(LaunchError):
    code = ErrorCode.disk_full


class RunConfigInvalid(LaunchError):
    code = ErrorCode.config_invalid


@dataclass(frozen=True)
class Launch:
    """A program that is ready to start."""

    run_dir: Path
    config: AnyStage
    """The stage's config, with paths of this host in place of references."""
    command: list[str]
    environment: dict[str, str]
    devices: Devices
    limits: ResourceLimits
    models: dict[str, ResolvedModel]
    """The models that it reads, by the path of the field that names them."""
    datasets: dict[str, Dataset]
    """The datasets that it reads, likewise."""
    n_oom_kills: int
    """Processes that the kernel had killed for lack of memory before the program started."""

    @property
    def base(self) -> ResolvedModel | None:
        """The model that the stage starts from."""
        return _find_base(self.models)

    @property
    def dataset_id(self) -> str | None:
        """The id of the stage's dataset; None without one, or with a mixture."""
        dataset = self.datasets.get("dataset")
        return None if dataset is None else dataset.id

    def on_node(self, run: Run, settings: Settings, place: NodePlace) -> "Launch":
        """Return the launch of a program whose processes meet those of other hosts."""
        python = settings.trainer_python or sys.executable
        command = launch_command.build_command(
            python, self.config, self.run_dir / files.CONFIG, self.run_dir, place
        )
        return replace(
            self, command=command, environment=self.environment | network_environment(place.address)
        )

    def with_engines(self, engines: Mapping[str, RunningEngine], pending: Sequence[str]) -> "Launch":
        """Return the launch with the addresses of engines in the program's config, and write that config."""
        assert isinstance(self.config, EngineClientConfig)
        config = self.config.with_engines(engines, pending)
        files.write_json(self.run_dir / files.CONFIG, config.model_dump(mode="json"))
        return replace(self, config=config)


def prepare_launch(
    run: Run,
    settings: Settings,
    devices: Devices,
    should_stop: Callable[[], bool] = lambda: False,
    node_rank: int = 0,
) -> Launch:
    """Fetch the run's inputs and write its config; after a failure no run directory is left.

    Workers that share a data directory may be nodes of one run, each with a run directory of its own.
    Raises LaunchError, and LaunchStopped when `should_stop` returned True during a download or a wait.
    """
    run_dir = settings.data_dir / "runs" / run.id / f"attempt-{run.attempt}"
    if node_rank:
        run_dir = run_dir.with_name(f"{run_dir.name}-node-{node_rank}")
    try:
        # A folder that is there already cannot be of this attempt: nothing in it is resumed from.
        shutil.rmtree(run_dir, ignore_errors=True)
        run_dir.mkdir(parents=True)
        _keep_completions(run, run_dir)
        _remove_earlier_attempts(run_dir, run.attempt)
        config, models, datasets = _resolve_references(run, settings, should_stop)
        if isinstance(config, BatchConfig):
            config = prepare_batch(run, config, run_dir)
        files.write_json(run_dir / files.CONFIG, config.model_dump(mode="json"))
        base = _find_base(models)
        wake_served_models(config, should_stop)
        environment = served_model_environment(config, settings)
        write_later_stages(run, base.reference if base is not None else None, settings, run_dir)
        _restore_checkpoint(run, run_dir)
    except BaseException as error:
        remove_run_dir(run_dir)
        if isinstance(error, OSError | ArtifactCorrupt | ValidationError):
            raise _as_launch_error(run, error) from error
        raise
    python = settings.trainer_python or sys.executable
    # The engine gets the devices; the program itself only sends requests.
    devices = NO_DEVICES if isinstance(config, EngineClientConfig) and config.uses_engine else devices
    reaches_hub = isinstance(config, LmEvalConfig) and config.needs_hub
    environment |= program_environment(devices, reaches_hub) | row_cache_environment(settings)
    if isinstance(config, TrainingConfig):
        environment |= training_environment(devices)
    return Launch(
        run_dir=run_dir,
        config=config,
        command=launch_command.build_command(python, config, run_dir / files.CONFIG, run_dir),
        environment=environment,
        devices=devices,
        limits=choose_limits(run, config, settings, str(run_dir)),
        models=models,
        datasets=datasets,
        n_oom_kills=count_oom_kills(),
    )


def _find_base(models: Mapping[str, ResolvedModel]) -> ResolvedModel | None:
    return models.get("base") or models.get("model")


def remove_run_dir(run_dir: Path) -> None:
    """Remove the run directory of an attempt, and the run's folder unless another attempt's is in it."""
    shutil.rmtree(run_dir, ignore_errors=True)
    # Workers that share a data directory may have another attempt's directory next to it.
    with contextlib.suppress(OSError):
        run_dir.parent.rmdir()


def _keep_completions(run: Run, run_dir: Path) -> None:
    """Copy what an earlier attempt on this host has generated into the run directory.

    A worker that was killed could not publish its last responses. The program uses them if they are of the
    same models and rows.
    """
    config = run.stage_config()
    if not isinstance(config, EngineClientConfig | BatchConfig | RecordConfig):
        return
    earlier = [run_dir.with_name(f"attempt-{attempt}") for attempt in range(1, run.attempt)]
    found = [path for folder in earlier for path in folder.glob(config.completions_file)]
    written = [path for completions in found for path in list_responses(completions)]
    # The largest file of each name is copied last.
    for path in sorted(written, key=lambda path: path.stat().st_size):
        shutil.copyfile(path, run_dir / path.name)


def _remove_earlier_attempts(run_dir: Path, attempt: int) -> None:
    """Remove the directories of earlier attempts on this host; a later attempt may already be running."""
    for earlier in range(1, attempt):
        name = f"attempt-{earlier}"
        for folder in [run_dir.with_name(name), *run_dir.parent.glob(f"{name}-node-*")]:
            shutil.rmtree(folder, ignore_errors=True)


def _as_launch_error(run: Run, error: Exception) -> LaunchError:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InputTooLarge(
            f"The disk of the worker's data directory is full: the inputs of {run.id} do not fit.",
            DISK_FULL_HINT,
        )
    if isinstance(error, ArtifactCorrupt):
        return InputCorrupt(f"An input of {run.id} cannot be used. {error.message}", error.hint)
    if isinstance(error, OSError):
        return InputUnreadable(
            f"An input of {run.id} cannot be read from the artifact store: {error}", STORE_HINT
        )
    return RunConfigInvalid(
        f"This worker cannot use the config of {run.id}: {error}",
        "Check that the worker has the same version as the API.",
    )


def _resolve_references(
    run: Run, settings: Settings, should_stop: Callable[[], bool]
) -> tuple[AnyStage, dict[str, ResolvedModel], dict[str, Dataset]]:
    """Return the config with a path for each reference, and its models and datasets by field."""
    config = run.stage_config()
    if isinstance(config, PrepareConfig) and config.source is not None:
        source = fetch_source(config.source, settings, should_stop)
        config = config.model_copy(update={"source": source})
    if isinstance(config, ImportConfig):
        model = fetch_import(config, settings, should_stop)
        # The program refuses a base for whole weights.
        unused = None if model.adapter else config.base
        return config.model_copy(update={"model": model.reference, "base": unused}), {"model": model}, {}
    if isinstance(config, CompareConfig):
        folders = [fetch_evaluation(run.job_id, evaluation) for evaluation in config.evaluations]
        config = config.model_copy(update={"evaluations": folders})
    if isinstance(config, GateConfig):
        config = fetch_gate_inputs(run.job_id, config)
    if isinstance(config, SelectConfig):
        config = read_tries(run.job_id, config)
    if isinstance(config, ExportConfig):
        config = config.model_copy(update={"gguf_environment": settings.gguf_environment or None})
    config = place_engine_program(place_metric_programs(place_kernels(config, settings), settings), settings)
    models: dict[str, ResolvedModel] = {}
    paths: dict[str, Any] = {}
    datasets: dict[str, Dataset] = {}
    for reference in find_references(config):
        if isinstance(reference, ModelField):
            model = fetch_any_model(run.job_id, reference.value, settings, should_stop)
            models[reference.path] = model
            paths[reference.path] = model.reference
        else:
            dataset = find_dataset(run.job_id, reference.value)
            datasets[reference.path] = dataset
            paths[reference.path] = str(fetch_dataset(dataset))
    config = replace_references(config, paths)
    if isinstance(config, EvaluateConfig):
        config = config.model_copy(update={"origins": find_origins(models)})
    return config, models, datasets


def _restore_checkpoint(run: Run, run_dir: Path) -> None:
    """Copy the run's last checkpoint into the run directory, from where the program resumes."""
    with read_session() as session:
        checkpoint = find_resumed_checkpoint(session, run.id)
    if checkpoint is None:
        return
    source = get_store().fetch_folder(checkpoint.artifact, checkpoint.sha256)
    path = f"{files.CHECKPOINTS}/step-{checkpoint.step:08d}"
    shutil.copytree(source, run_dir / path, ignore=shutil.ignore_patterns(MANIFEST))
    line = {
        "step": checkpoint.step,
        "path": path,
        "size_bytes": checkpoint.size_bytes,
        "manifest_sha256": hash_file(run_dir / path / files.MANIFEST),
        "time": checkpoint.created_at.isoformat(),
    }
    files.append_line(run_dir / files.CHECKPOINT_LINES, line)
