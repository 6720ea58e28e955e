"""The later stages of a job, which the program of an earlier one checks before it trains.

Only what exists is given to the program: a stage whose rows an unfinished stage will produce, or which starts
from another model, is checked by a later run. An import is given to it if all that it reads is on this host.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlmodel import col, select

from app.runs.graph import list_dependents, load_needs
from app.settings import Settings
from app.storage.database import read_session
from app.tables import Run, RunStatus
from trainers.configs import AnyStage, GenerateConfig, ImportConfig, ModelRef, StageDataset, StageOutput
from trainers.configs.references import (
    DatasetField,
    FolderModel,
    ModelField,
    find_references,
    parse_location,
    replace_references,
)
from trainers.configs.training import TrainingConfig
from trainers.runtime import run_dir as files
from workers.inputs.datasets import fetch_dataset, find_dataset
from workers.inputs.errors import LaunchError, LaunchStopped
from workers.inputs.models import fetch_import

# The field of a stage's config with the model that it works on.
MODEL_FIELDS = ("base", "model")


def write_later_stages(run: Run, model: ModelRef | None, settings: Settings, run_dir: Path) -> None:
    """Write the configs of the job's later stages that start from the same model as the run.

    In each, `model`, a path on this host, stands in for the model that the stage will get. Raises the errors
    of `find_dataset` and `fetch_dataset`.
    """
    config = run.stage_config()
    if model is None or not isinstance(config, TrainingConfig | GenerateConfig):
        return
    same = {run.name}
    start = _find_start(config)
    stages = []
    for later in _list_later_runs(run):
        stage = later.stage_config()
        if isinstance(stage, ImportConfig):
            stages += _resolve_import(stage, settings)
            continue
        origin = _find_start(stage)
        is_same = origin == start or (isinstance(origin, StageOutput) and origin.stage in same)
        if not is_same:
            continue
        if later.stage.produces_model:
            same.add(later.name)
        if (paths := _fetch_rows(run.job_id, stage)) is not None:
            models = {field.path: model for field in find_references(stage) if isinstance(field, ModelField)}
            stages.append(replace_references(stage, paths | models).model_dump(mode="json"))
    if stages:
        template = config.template if isinstance(config, TrainingConfig) else None
        files.write_json(run_dir / files.LATER_STAGES, {"template": template, "stages": stages})


def _resolve_import(config: ImportConfig, settings: Settings) -> list[dict[str, Any]]:
    """Return the config of an import with paths of this host; nothing if it would have to be downloaded."""
    try:
        if not isinstance(parse_location(str(config.model)), FolderModel):
            return []
        model = fetch_import(config, settings, should_stop=lambda: True)
    except (LaunchError, LaunchStopped, ValueError):
        # Another worker, with other folders, may run it.
        return []
    changes = {"model": model.reference, "base": None if model.adapter else config.base}
    return [config.model_copy(update=changes).model_dump(mode="json")]


def _list_later_runs(run: Run) -> Sequence[Run]:
    """Return the queued runs that need this one, directly or through others."""
    of_job = select(Run).where(col(Run.job_id) == run.job_id).order_by(col(Run.position))
    with read_session() as session:
        runs, needs = session.exec(of_job).all(), load_needs(session, run.job_id)
    return [later for later in list_dependents(runs, needs, run) if later.status is RunStatus.queued]


def _find_start(config: AnyStage) -> Any:
    return next((getattr(config, name) for name in MODEL_FIELDS if hasattr(config, name)), None)


def _fetch_rows(job_id: str, config: AnyStage) -> dict[str, str] | None:
    """Return the path of each dataset on this host; None if a stage has yet to produce one."""
    paths = {}
    for field in find_references(config):
        if isinstance(field, DatasetField):
            if isinstance(field.value, StageDataset) and not _has_succeeded(job_id, field.value.stage):
                return None
            paths[field.path] = str(fetch_dataset(find_dataset(job_id, field.value)))
    return paths


def _has_succeeded(job_id: str, stage: str) -> bool:
    statement = select(col(Run.status)).where(col(Run.job_id) == job_id, col(Run.name) == stage)
    with read_session() as session:
        return session.exec(statement).one() is RunStatus.succeeded
