"""Retention of checkpoints: a run that has ended needs no optimizer state, and after a time no checkpoint.

Nothing inside a published checkpoint changes. Its weights are published a second time under another key, by
links where the store has them, then the row is moved to that key, and then the first artifact is garbage. A
crash at any point leaves one complete checkpoint, and at most garbage next to it.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from sqlalchemy import ColumnElement, delete, or_, select, update
from sqlmodel import col

from app.retention.report import Removal, RemovalReason
from app.settings import Settings, SucceededCheckpoints
from app.storage.artifacts import ArtifactStore
from app.storage.database import database_now, read_session, transaction
from app.storage.manifest import ArtifactCorrupt
from app.tables import Checkpoint, Run, RunStatus
from trainers.configs import StageKind

DAY_SECONDS = 86_400.0
# Files and folders in which the Trainer, Accelerate and DeepSpeed save what only a resumed run needs.
STATE_PREFIXES = ("optimizer", "scheduler", "rng_state", "random_states", "scaler")
MLX_STATE_FOLDER = "training"
DEEPSPEED_STATE_SUFFIX = "optim_states.pt"
# The end of the key under which a checkpoint without its state is published.
WEIGHTS_SUFFIX = "-weights"

logger = logging.getLogger(__name__)


def is_training_state(path: str) -> bool:
    """Return whether a file of a checkpoint is optimizer, scheduler or random state."""
    parts = PurePosixPath(path).parts
    return (
        parts[0] == MLX_STATE_FOLDER
        or parts[-1].endswith(DEEPSPEED_STATE_SUFFIX)
        or any(part.startswith(STATE_PREFIXES) for part in parts)
    )


def expire_checkpoints(
    store: ArtifactStore, settings: Settings, before_each: Callable[[], None], *, dry_run: bool
) -> Iterator[Removal]:
    """Delete the checkpoints that the settings do not keep: the row first, then the files."""
    expired = select(Checkpoint).join(Run, col(Run.id) == col(Checkpoint.run_id)).where(_expired(settings))
    with read_session() as session:
        checkpoints = session.scalars(expired).all()
    # The run may have been retried since: then it needs the checkpoint.
    still_expired = col(Checkpoint.run_id).in_(select(col(Run.id)).where(_expired(settings)))
    for checkpoint in checkpoints:
        before_each()
        if not dry_run:
            statement = delete(Checkpoint).where(col(Checkpoint.id) == checkpoint.id, still_expired)
            statement = statement.execution_options(synchronize_session=False)
            with transaction() as session:
                if session.scalar(statement.returning(col(Checkpoint.id))) is None:
                    continue
            store.delete(checkpoint.artifact)
        yield _removal(RemovalReason.checkpoint_expired, checkpoint, checkpoint.size_bytes)


def drop_training_state(
    store: ArtifactStore, settings: Settings, before_each: Callable[[], None], *, dry_run: bool
) -> Iterator[Removal]:
    """Reduce the checkpoints of succeeded runs to their weights."""
    if settings.succeeded_checkpoints is not SucceededCheckpoints.weights:
        return
    succeeded = select(Checkpoint).join(Run, col(Run.id) == col(Checkpoint.run_id))
    succeeded = succeeded.where(col(Run.status) == RunStatus.succeeded, col(Checkpoint.resumable).is_(True))
    with read_session() as session:
        checkpoints = session.scalars(succeeded.where(~_expired(settings))).all()
    for checkpoint in checkpoints:
        before_each()
        try:
            files = store.read_manifest(checkpoint.artifact, checkpoint.sha256)
            if not dry_run:
                _publish_weights(store, checkpoint, [f for f in files if not is_training_state(f["path"])])
        except (ArtifactCorrupt, FileNotFoundError) as error:
            # A damaged checkpoint must not end every collection. An unreachable store does.
            logger.warning("%s is not reduced: %s", checkpoint.id, error)
            continue
        state_bytes = sum(file["size_bytes"] for file in files if is_training_state(file["path"]))
        yield _removal(RemovalReason.checkpoint_state, checkpoint, state_bytes)


def _publish_weights(store: ArtifactStore, checkpoint: Checkpoint, files: Sequence[dict[str, Any]]) -> None:
    published = store.publish_subset(checkpoint.artifact, checkpoint.artifact + WEIGHTS_SUFFIX, list(files))
    with transaction() as session:
        moved = session.scalar(
            update(Checkpoint)
            .where(col(Checkpoint.id) == checkpoint.id, col(Checkpoint.artifact) == checkpoint.artifact)
            .values(
                artifact=published.key,
                sha256=published.sha256,
                size_bytes=published.size_bytes,
                resumable=False,
            )
            .returning(col(Checkpoint.id))
            .execution_options(synchronize_session=False)
        )
    if moved is not None:
        store.delete(checkpoint.artifact)


def _expired(settings: Settings) -> ColumnElement[bool]:
    """Return the condition on the run of a checkpoint under which the checkpoint is deleted."""
    succeeded = col(Run.status) == RunStatus.succeeded
    conditions: list[ColumnElement[bool]] = []
    if settings.succeeded_checkpoints is SucceededCheckpoints.none:
        conditions.append(succeeded)
    elif settings.succeeded_checkpoints is SucceededCheckpoints.weights:
        # The checkpoints of other stages are rows that the result contains as well.
        without_model = [stage for stage in StageKind if not stage.produces_model]
        conditions.append(succeeded & col(Run.stage).in_(without_model))
    if settings.checkpoint_weights_days:
        conditions.append(succeeded & _ended_before(settings.checkpoint_weights_days))
    if settings.failed_checkpoint_days:
        unsuccessful = col(Run.status).in_((RunStatus.failed, RunStatus.cancelled, RunStatus.skipped))
        conditions.append(unsuccessful & _ended_before(settings.failed_checkpoint_days))
    # False, in a form that both databases can combine with other conditions.
    return or_(col(Run.id) == "", *conditions)


def _ended_before(days: float) -> ColumnElement[bool]:
    return col(Run.finished_at) < database_now(-days * DAY_SECONDS)


def _removal(reason: RemovalReason, checkpoint: Checkpoint, size_bytes: int) -> Removal:
    name = f"{checkpoint.id} of {checkpoint.run_id}, step {checkpoint.step}"
    return Removal(reason=reason, name=name, size_bytes=size_bytes)
