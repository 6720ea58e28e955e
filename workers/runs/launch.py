"""Preparation of a claimed run: fetch its inputs, write its config, and build its command."""

import errno
import os
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sqlmodel import Session, col, select

from app.settings import Settings
from app.storage.artifacts import get_store
from app.storage.database import read_session
from app.storage.manifest import MANIFEST, ArtifactCorrupt
from app.tables import Checkpoint, Dataset, Model, ModelKind, Run
from trainers.configs import (
    AdaptedModel,
    AnyStage,
    DatasetRef,
    EngineClientConfig,
    ModelRef,
    PrepareConfig,
    StageOutput,
)
from trainers.configs.references import ModelField, find_references, replace_references
from trainers.runtime import launch_command
from trainers.runtime import run_dir as files
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import TunesmithError
from workers.hosts.devices import NO_DEVICES, Devices
from workers.hosts.resource_limits import ResourceLimits
from workers.runs.limits import choose_limits
from workers.runs.recovery import DISK_FULL_HINT, count_oom_kills

# Variables that a program inherits. A worker's own credentials (database, broker) are not among them.
INHERITED_VARIABLES = (
    "PATH", "HOME", "USER", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH", "LD_LIBRARY_PATH",
    "HF_TOKEN", "HF_HOME", "HF_ENDPOINT", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "OMP_NUM_THREADS",
    "CUDA_HOME", "NVIDIA_VISIBLE_DEVICES", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
)  # fmt: skip

STORE_HINT = "Check that this worker's TUNESMITH_ARTIFACTS_URL equals the API's, and that the store is up."


class LaunchError(TunesmithError):
    """An input or a config with which this worker cannot start the run."""


class InputModelNotFound(LaunchError):
    code = ErrorCode.model_not_found


class InputDatasetNotFound(LaunchError):
    code = ErrorCode.dataset_not_found


class InputUnreadable(LaunchError):
    code = ErrorCode.artifacts_unreachable


class InputCorrupt(LaunchError):
    code = ErrorCode.artifact_corrupt


class InputTooLarge(LaunchError):
    code = ErrorCode.disk_full


class RunConfigInvalid(LaunchError):
    code = ErrorCode.config_invalid


@dataclass(frozen=True)
class ResolvedModel:
    """A model reference resolved to folders on this host."""

    base: str
    adapter: Path | None
    origin: str
    """The reference of the base weights: a hub id, a folder, or a registry id."""
    model_id: str | None

    @property
    def reference(self) -> ModelRef:
        """The model as a program's config names it."""
        return AdaptedModel(base=self.base, adapter=str(self.adapter)) if self.adapter else self.base


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
    dataset_id: str | None
    base: ResolvedModel | None
    n_oom_kills: int
    """Processes that the kernel had killed for lack of memory before the program started."""

    def with_engine(self, url: str, model: str) -> "Launch":
        """Return the launch with the address of the engine in the program's config, and write that config."""
        config = self.config.model_copy(update={"engine_url": url, "engine_model": model})
        files.write_json(self.run_dir / files.CONFIG, config.model_dump(mode="json"))
        return replace(self, config=config)


def prepare_launch(run: Run, settings: Settings, devices: Devices) -> Launch:
    """Fetch the run's inputs and write its config; raises LaunchError."""
    run_dir = settings.data_dir / "runs" / run.id / f"attempt-{run.attempt}"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        _remove_earlier_attempts(run_dir, run.attempt)
        config, models, dataset_id = _resolve_references(run, settings)
        files.write_json(run_dir / files.CONFIG, config.model_dump(mode="json"))
        _restore_checkpoint(run, run_dir)
    except (OSError, ArtifactCorrupt, ValidationError) as error:
        raise _as_launch_error(run, error) from error
    python = settings.trainer_python or sys.executable
    # The engine gets the devices; the program itself only sends requests.
    devices = NO_DEVICES if isinstance(config, EngineClientConfig) else devices
    return Launch(
        run_dir=run_dir,
        config=config,
        command=launch_command.build_command(python, config, run_dir / files.CONFIG, run_dir),
        environment=program_environment(devices),
        devices=devices,
        limits=choose_limits(run, config, settings, str(run_dir)),
        dataset_id=dataset_id,
        base=models.get("base") or models.get("model"),
        n_oom_kills=count_oom_kills(),
    )


def fetch_model(job_id: str | None, reference: ModelRef, settings: Settings) -> ResolvedModel:
    """Resolve a model reference to folders on this host, and fetch missing files; raises LaunchError."""
    if isinstance(reference, StageOutput):
        reference = _find_stage_model(job_id, reference.stage)
    assert isinstance(reference, str), "a job's config names no adapter by its folder"
    if not reference.startswith("model_"):
        return ResolvedModel(_check_model_path(reference, settings), None, reference, None)
    with read_session() as session:
        model = session.get(Model, reference)
    if model is None or model.deleted_at is not None:
        raise InputModelNotFound(
            f"The model {reference} {'does not exist' if model is None else 'was deleted'}.",
            "List the models with GET /api/v1/models.",
        )
    folder = _fetch_folder(model)
    if model.kind is ModelKind.base:
        return ResolvedModel(str(folder), None, model.id, model.id)
    base = fetch_model(None, model.base, settings)
    return ResolvedModel(base.base, folder, base.origin, model.id)


def fetch_dataset(dataset: Dataset) -> Path:
    """Return the path of the dataset's file on this host; raises OSError or ArtifactCorrupt."""
    return get_store().fetch_file(dataset.artifact, dataset.sha256)


def program_environment(devices: Devices) -> dict[str, str]:
    """Return the environment variables of a program or engine."""
    inherited = {name: os.environ[name] for name in INHERITED_VARIABLES if name in os.environ}
    return {
        **inherited,
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # With mlflow installed for tracking, TRL would import it in every program, which takes a second.
        "DISABLE_MLFLOW_INTEGRATION": "TRUE",
        **devices.environment,
    }


def _remove_earlier_attempts(run_dir: Path, attempt: int) -> None:
    """Remove the directories of earlier attempts on this host; a later attempt may already be running."""
    for earlier in range(1, attempt):
        shutil.rmtree(run_dir.with_name(f"attempt-{earlier}"), ignore_errors=True)


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
    run: Run, settings: Settings
) -> tuple[AnyStage, dict[str, ResolvedModel], str | None]:
    """Return the config with a path for each reference, its models by field, and its dataset's id."""
    config = run.stage_config()
    _check_sources(config, settings)
    models: dict[str, ResolvedModel] = {}
    paths: dict[str, Any] = {}
    dataset_id = None
    for reference in find_references(config):
        if isinstance(reference, ModelField):
            model = fetch_model(run.job_id, reference.value, settings)
            models[reference.path] = model
            paths[reference.path] = model.reference
        else:
            dataset = _find_dataset(run.job_id, reference.value)
            dataset_id = dataset.id if reference.path == "dataset" else dataset_id
            paths[reference.path] = str(fetch_dataset(dataset))
    return replace_references(config, paths), models, dataset_id


def _check_sources(stage: AnyStage, settings: Settings) -> None:
    """Check that the files that a job names are under a root that this host allows."""
    paths = stage.source.paths if isinstance(stage, PrepareConfig) and stage.source else []
    for path in paths:
        resolved = Path(path).expanduser().resolve()
        if not any(resolved.is_relative_to(root) for root in settings.dataset_roots):
            raise InputDatasetNotFound(
                f"The source {path} is not in a folder that this worker may read.",
                "Move it into one, or add its folder to TUNESMITH_DATASET_ROOTS on the worker.",
            )


def _find_dataset(job_id: str, reference: DatasetRef) -> Dataset:
    """Return the dataset of the registry, or the part that an earlier stage of the job has produced."""
    with read_session() as session:
        if isinstance(reference, str):
            return _get_dataset(session, reference)
        by_name = select(Run).where(col(Run.job_id) == job_id, col(Run.name) == reference.stage)
        result = session.exec(by_name).one().result
        assert result is not None, f"stage {reference.stage} of {job_id} has succeeded"
        dataset_id = next((d["id"] for d in result["datasets"] if d["part"] == reference.part), None)
        if dataset_id is None:
            raise InputDatasetNotFound(
                f"Stage {reference.stage!r} produced no part {reference.part!r}: no row was assigned to it.",
                "Request a larger part in its `split`, or add rows.",
            )
        return _get_dataset(session, dataset_id)


def _get_dataset(session: Session, dataset_id: str) -> Dataset:
    dataset = session.get(Dataset, dataset_id)
    if dataset is None or dataset.deleted_at is not None:
        raise InputDatasetNotFound(
            f"The dataset {dataset_id} {'does not exist' if dataset is None else 'was deleted'}.",
            "Upload the same file again, which restores a deleted dataset, or submit a job with another one.",
        )
    return dataset


def _find_stage_model(job_id: str | None, stage: str) -> str:
    """Return the id of the model that an earlier stage of the job has produced."""
    with read_session() as session:
        run = session.exec(select(Run).where(col(Run.job_id) == job_id, col(Run.name) == stage)).one()
    assert run.model_id is not None, f"{run.id} has succeeded and its stage produces a model"
    return run.model_id


def _check_model_path(reference: str, settings: Settings) -> str:
    """Check that a folder is under a root that this host allows. The program fetches a hub id itself."""
    if not reference.startswith(("/", ".")):
        return reference
    path = Path(reference).resolve()
    if not any(path.is_relative_to(root) for root in settings.model_roots):
        raise InputModelNotFound(
            f"The model folder {reference} is not under a root that this worker may read.",
            "Add its root to TUNESMITH_MODEL_ROOTS on the worker.",
        )
    if not path.is_dir():
        raise InputModelNotFound(
            f"The model folder {reference} does not exist on this worker's host.",
            "Copy the model there, or name a hub id.",
        )
    return str(path)


def _fetch_folder(model: Model) -> Path:
    try:
        return get_store().fetch_folder(model.artifact, model.sha256)
    except ArtifactCorrupt as error:
        raise InputCorrupt(f"The model {model.id} cannot be used. {error.message}", error.hint) from error
    except OSError as error:
        raise InputUnreadable(
            f"The model {model.id} cannot be read from the artifact store: {error}.", STORE_HINT
        ) from error


def _restore_checkpoint(run: Run, run_dir: Path) -> None:
    """Copy the run's last checkpoint into the run directory, from where the program resumes."""
    latest = select(Checkpoint).where(col(Checkpoint.run_id) == run.id, col(Checkpoint.resumable).is_(True))
    latest = latest.order_by(col(Checkpoint.step).desc(), col(Checkpoint.attempt).desc()).limit(1)
    with read_session() as session:
        checkpoint = session.exec(latest).one_or_none()
    if checkpoint is None:
        return
    source = get_store().fetch_folder(checkpoint.artifact, checkpoint.sha256)
    path = f"{files.CHECKPOINTS}/step-{checkpoint.step:08d}"
    shutil.copytree(source, run_dir / path, ignore=shutil.ignore_patterns(MANIFEST))
    line = {
        "step": checkpoint.step,
        "path": path,
        "size_bytes": checkpoint.size_bytes,
        "time": checkpoint.created_at.isoformat(),
    }
    files.append_line(run_dir / files.CHECKPOINT_LINES, line)
