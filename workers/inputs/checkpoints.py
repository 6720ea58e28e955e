"""Checkpoints of training runs as models, which an evaluation compares."""

from collections.abc import Callable

from sqlmodel import col, select

from app.jobs.plan_checks import UNPUBLISHED_BASE_HINT, explain_unpublished_base
from app.settings import Settings
from app.storage.database import read_session
from app.storage.manifest import ArtifactCorrupt
from app.storage.opening import get_store
from app.tables import Checkpoint, Model, Run
from trainers.configs import ModelRef
from trainers.configs.base import CheckpointModel
from trainers.configs.training import TrainingConfig
from trainers.modeling.model_files import ModelRole, is_adapter, open_model
from trainers.runtime.errors import ProgramError
from workers.inputs.errors import InputCorrupt, InputModelNotFound, InputRefused
from workers.inputs.models import ResolvedModel, fetch_model, find_views


def fetch_any_model(
    job_id: str | None,
    reference: ModelRef | CheckpointModel,
    settings: Settings,
    should_stop: Callable[[], bool] = lambda: False,
) -> ResolvedModel:
    """Resolve a model, or a checkpoint of a run, to verified folders here; raises as `fetch_model`."""
    if not isinstance(reference, CheckpointModel):
        return fetch_model(job_id, reference, settings, should_stop)
    run, checkpoint = _find_checkpoint(reference)
    config = run.stage_config()
    assert isinstance(config, TrainingConfig), "the API has checked that the run trains"
    try:
        folder = get_store().fetch_folder(checkpoint.artifact, checkpoint.sha256)
    except ArtifactCorrupt as error:
        raise InputCorrupt(
            f"The checkpoint {reference} cannot be used. {error.message}", error.hint
        ) from error
    role = ModelRole.adapter if is_adapter(folder) else ModelRole.base
    try:
        # Optimizer and random state are hidden: only safetensors and configs are visible.
        opened = open_model(folder, role, [], find_views(settings))
    except ProgramError as error:
        raise InputRefused(error) from error
    step = checkpoint.step
    if role is ModelRole.base:
        return ResolvedModel(str(opened), None, run.id, None, None, run.id, step)
    base = _fetch_base(run, config, settings, should_stop)
    return ResolvedModel(base.base, opened, base.origin, None, None, run.id, step)


def _fetch_base(
    run: Run, config: TrainingConfig, settings: Settings, should_stop: Callable[[], bool]
) -> ResolvedModel:
    """Return the base of a run's adapters: that of its config, or the one that the run has published."""
    if not config.publishes_base:
        return fetch_model(run.job_id, config.base, settings, should_stop)
    if run.model_id is None:
        raise InputModelNotFound(explain_unpublished_base(run), UNPUBLISHED_BASE_HINT)
    with read_session() as session:
        published = session.get_one(Model, run.model_id).base
    return fetch_model(None, published, settings, should_stop)


def _find_checkpoint(reference: CheckpointModel) -> tuple[Run, Checkpoint]:
    statement = select(Checkpoint).where(col(Checkpoint.run_id) == reference.run)
    if reference.step is not None:
        statement = statement.where(col(Checkpoint.step) == reference.step)
    newest = statement.order_by(col(Checkpoint.step).desc(), col(Checkpoint.attempt).desc()).limit(1)
    with read_session() as session:
        run, checkpoint = session.get(Run, reference.run), session.exec(newest).one_or_none()
    if run is None or checkpoint is None:
        raise InputModelNotFound(
            f"There is no checkpoint {reference}.",
            "The events of a run list its checkpoints. `keep_checkpoints` of the training stage, and "
            "TUNESMITH_SUCCEEDED_CHECKPOINTS, decide which are kept.",
        )
    return run, checkpoint
