"""From a claimed run to a program that can start: inputs pulled, config written, command made."""

import copy
import errno
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sqlmodel import col, select

from app.settings import Settings
from app.storage.artifacts import ArtifactCorrupt, ArtifactStore, get_store
from app.storage.database import read_session
from app.tables import Checkpoint, Dataset, Model, ModelKind, Run
from trainers.configs import PrepareConfig, Queue, StageDataset, StageKind, StageOutput, parse_stage
from trainers.configs.references import ReferenceKind, find_references
from trainers.runtime import launch_command
from trainers.runtime import run_dir as files
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import TunesmithError
from workers.hosts import devices
from workers.runs.recovery import count_oom_kills, disk_full_error

# What is handed on to a program: a worker's own credentials (database, broker) are not.
ENVIRONMENT = (
    "PATH", "HOME", "USER", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH", "LD_LIBRARY_PATH",
    "HF_TOKEN", "HF_HOME", "HF_ENDPOINT", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "OMP_NUM_THREADS",
    "CUDA_HOME", "NVIDIA_VISIBLE_DEVICES", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
)  # fmt: skip


class LaunchError(TunesmithError):
    """A run that cannot start, with the code, message and hint that it is to show."""

    def __init__(self, code: ErrorCode, message: str, hint: str) -> None:
        super().__init__(message, hint)
        self.code = code


@dataclass(frozen=True)
class ResolvedModel:
    """A model reference followed to folders on this host."""

    base: str
    adapter: Path | None
    origin: str
    """The reference of the whole weights below it: a hub id, a folder, or a registry id."""
    model_id: str | None

    @property
    def reference(self) -> str | dict[str, str]:
        """As a program's config names it."""
        return {"base": self.base, "adapter": str(self.adapter)} if self.adapter else self.base


@dataclass(frozen=True)
class Launch:
    """A program ready to start."""

    run_dir: Path
    command: list[str]
    environment: dict[str, str]
    dataset_id: str | None
    base: ResolvedModel | None
    kernel_kills: int
    """Programs that this host's kernel had killed for memory before it starts."""


def prepare_launch(run: Run, settings: Settings, gpus: list[int]) -> Launch:
    """Pull the run's inputs and write its config; raises LaunchError."""
    run_dir = settings.data_dir / "runs" / run.id / f"attempt-{run.attempt}"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        _clear_earlier(run_dir, run.attempt)
        values, models, dataset_id = _resolve(run, settings)
        if run.stage is StageKind.generate:
            values["engine_program"] = settings.engine_commands.get(values["engine"], [])
        config = parse_stage(values)
        files.write_json(run_dir / files.CONFIG, config.model_dump(mode="json"))
        _lay_checkpoint(run, run_dir, settings)
    except LaunchError:
        raise
    except (OSError, ArtifactCorrupt, ValidationError) as error:
        raise _refusal(run, error) from error
    python = settings.trainer_python or sys.executable
    command = launch_command.build_command(python, config, run_dir / files.CONFIG, run_dir)
    origin = models.get("base") or models.get("model")
    return Launch(
        run_dir, command, program_environment(run.queue, gpus), dataset_id, origin, count_oom_kills()
    )


def fetch_model(job_id: str | None, reference: Any, settings: Settings) -> ResolvedModel:
    """Follow a reference from a config to folders on this host; raises LaunchError."""
    if isinstance(reference, dict):
        reference = _made_by(job_id, StageOutput.model_validate(reference).stage)
    if not reference.startswith("model_"):
        return ResolvedModel(_checked(reference, settings), None, reference, None)
    with read_session() as session:
        model = session.get(Model, reference)
    if model is None:
        raise LaunchError(
            ErrorCode.model_not_found,
            f"There is no model {reference}.",
            "List them with GET /api/v1/models.",
        )
    folder = _fetch(get_store(), model, settings)
    if model.kind is ModelKind.base:
        return ResolvedModel(str(folder), None, model.id, model.id)
    below = fetch_model(None, model.base, settings)
    return ResolvedModel(below.base, folder, below.origin, model.id)


def program_environment(queue: Queue, gpus: list[int]) -> dict[str, str]:
    """The variables of a program or engine."""
    passed = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    return {
        **passed,
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Where the package is installed for tracking, TRL would load it with every program, for a second.
        "DISABLE_MLFLOW_INTEGRATION": "TRUE",
        **devices.device_environment(queue, gpus),
    }


def _clear_earlier(run_dir: Path, attempt: int) -> None:
    """Remove what earlier attempts left on this host; a later one's is not this attempt's to touch."""
    for earlier in range(1, attempt):
        shutil.rmtree(run_dir.with_name(f"attempt-{earlier}"), ignore_errors=True)


def _refusal(run: Run, error: Exception) -> LaunchError:
    """Why the run's inputs could not be laid out on this host."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        told = disk_full_error(
            f"The disk with the worker's data directory is full: the inputs of {run.id} do not fit."
        )
        return LaunchError(told["code"], told["message"], told["hint"])
    if isinstance(error, OSError | ArtifactCorrupt):
        return LaunchError(
            ErrorCode.artifacts_unreachable,
            f"An input of {run.id} cannot be read from the artifact store: {error}",
            "See whether this worker's TUNESMITH_ARTIFACTS_URL is the one of the API, and whether it is up.",
        )
    return LaunchError(
        ErrorCode.config_invalid,
        f"This worker cannot use the config of {run.id}: {error}",
        "See whether the worker is of the same version as the API.",
    )


def _resolve(run: Run, settings: Settings) -> tuple[dict[str, Any], dict[str, ResolvedModel], str | None]:
    """The run's config with every reference made a path of this host."""
    values = copy.deepcopy(run.config)
    _check_sources(run, settings)
    models: dict[str, ResolvedModel] = {}
    dataset_id = None
    for reference in find_references(values):
        if reference.kind is ReferenceKind.model:
            model = fetch_model(run.job_id, reference.value, settings)
            models[reference.path] = model
            reference.replace(model.reference)
        else:
            dataset = _find_dataset(run.job_id, reference.value)
            dataset_id = dataset.id if reference.path == "dataset" else dataset_id
            reference.replace(str(fetch_dataset(dataset, settings)))
    return values, models, dataset_id


def _check_sources(run: Run, settings: Settings) -> None:
    """Files that a person names must lie under a root that this host allows."""
    stage = parse_stage(run.config)
    paths = stage.source.paths if isinstance(stage, PrepareConfig) and stage.source else []
    for path in paths:
        followed = Path(path).expanduser().resolve()
        if not any(followed.is_relative_to(root) for root in settings.dataset_roots):
            raise LaunchError(
                ErrorCode.dataset_not_found,
                f"The source {path} lies under none of the folders that this worker may read.",
                "Put it under one, or add its folder to TUNESMITH_DATASET_ROOTS on the worker.",
            )


def _find_dataset(job_id: str, reference: Any) -> Dataset:
    """The registry's dataset, or the part that an earlier stage of the job has made."""
    with read_session() as session:
        if isinstance(reference, str):
            return session.get_one(Dataset, reference)
        made = StageDataset.model_validate(reference)
        by_name = select(Run).where(col(Run.job_id) == job_id, col(Run.name) == made.stage)
        result = session.exec(by_name).one().result
        assert result is not None, f"stage {made.stage} of {job_id} is done"
        dataset_id = next((d["id"] for d in result["datasets"] if d["part"] == made.part), None)
        if dataset_id is None:
            raise LaunchError(
                ErrorCode.dataset_not_found,
                f"Stage {made.stage!r} has made no part {made.part!r}: no row fell into it.",
                "Ask for a larger part in its `split`, or give it more rows.",
            )
        return session.get_one(Dataset, dataset_id)


def fetch_dataset(dataset: Dataset, settings: Settings) -> Path:
    """The dataset's file on this host; raises OSError or ArtifactCorrupt."""
    path = get_store().fetch_file(dataset.artifact, dataset.sha256, settings.data_dir / "cache")
    if not path.exists():
        raise FileNotFoundError(path)
    return path


def _made_by(job_id: str | None, stage: str) -> str:
    """Id of the model that an earlier stage of the job has made."""
    with read_session() as session:
        run = session.exec(select(Run).where(col(Run.job_id) == job_id, col(Run.name) == stage)).one()
    assert run.model_id is not None, f"{run.id} is done and its stage makes a model"
    return run.model_id


def _checked(reference: str, settings: Settings) -> str:
    """A folder must lie under a root that this host allows; a hub id is fetched by the program."""
    if not reference.startswith(("/", ".")):
        return reference
    path = Path(reference).resolve()
    if not any(path.is_relative_to(root) for root in settings.model_roots):
        raise LaunchError(
            ErrorCode.model_not_found,
            f"The model folder {reference} lies under none of the roots that this worker may read.",
            "Add its root to TUNESMITH_MODEL_ROOTS on the worker.",
        )
    if not path.is_dir():
        raise LaunchError(
            ErrorCode.model_not_found,
            f"The model folder {reference} does not exist on this worker's host.",
            "Put the model there, or name a hub id.",
        )
    return str(path)


def _fetch(store: ArtifactStore, model: Model, settings: Settings) -> Path:
    try:
        folder = store.fetch_folder(model.artifact, model.sha256, settings.data_dir / "cache")
        if not folder.is_dir():
            raise FileNotFoundError(folder)
    except (OSError, ArtifactCorrupt) as error:
        raise LaunchError(
            ErrorCode.artifacts_unreachable,
            f"The model {model.id} cannot be read from the artifact store: {error}.",
            "See whether this worker's TUNESMITH_ARTIFACTS_URL is the one of the API, and whether it is up.",
        ) from error
    return folder


def _lay_checkpoint(run: Run, run_dir: Path, settings: Settings) -> None:
    """Put the run's last checkpoint where the program looks for the point to resume from."""
    newest = select(Checkpoint).where(col(Checkpoint.run_id) == run.id)
    newest = newest.order_by(col(Checkpoint.step).desc(), col(Checkpoint.attempt).desc()).limit(1)
    with read_session() as session:
        checkpoint = session.exec(newest).one_or_none()
    if checkpoint is None:
        return
    source = get_store().fetch_folder(checkpoint.artifact, checkpoint.sha256, settings.data_dir / "cache")
    path = f"{files.CHECKPOINTS}/step-{checkpoint.step:08d}"
    shutil.copytree(source, run_dir / path, ignore=shutil.ignore_patterns(".manifest.json"))
    line = {
        "step": checkpoint.step,
        "path": path,
        "size_bytes": checkpoint.size_bytes,
        "time": checkpoint.created_at.isoformat(),
    }
    files.append_line(run_dir / files.CHECKPOINT_LINES, line)
