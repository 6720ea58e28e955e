"""Garbage: artifacts that no row names.

An artifact is published before its row is committed, so one without a row may be a publication in progress.
It is deleted only if no publication can still name it: its dataset or model is marked as deleted, its run has
ended or is gone, or it is older than the grace period and than every run in progress. Keys are never used
twice, so an artifact that was garbage once stays garbage. There is one exception: the weights of a checkpoint
whose row still names the whole checkpoint. They are deleted after the grace period only. Keys of an unknown
form are never touched.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlmodel import Session, col

from app.retention.checkpoints import WEIGHTS_SUFFIX
from app.retention.report import Removal, RemovalReason
from app.storage.artifacts import ArtifactStore
from app.storage.database import read_session
from app.storage.inventory import ArtifactKind, StoredArtifact
from app.tables import (
    HELD,
    Checkpoint,
    Comparison,
    Dataset,
    Evaluation,
    File,
    Model,
    Run,
    RunStatus,
    UploadPart,
)

BATCH = 500
# The kinds of artifacts whose key contains their run.
OF_RUNS = (ArtifactKind.checkpoints, ArtifactKind.evaluations, ArtifactKind.runs)
# Allowance for the difference between the clocks of the database and of the store.
CLOCK_SKEW_SECONDS = 3600.0


@dataclass(frozen=True)
class _BatchNames:
    """The names and owners of the artifacts of a batch in the database."""

    named: set[str]
    deleted: set[str]
    runs: dict[str, tuple[RunStatus, int]]
    oldest_held_start: float


def classify(
    artifacts: Sequence[StoredArtifact], grace_seconds: float, now: Callable[[], float] = time.time
) -> Iterator[tuple[StoredArtifact, RemovalReason | None]]:
    """Yield the artifacts that no row names, with the reason to delete each now; None if it is too young."""
    for start in range(0, len(artifacts), BATCH):
        batch = artifacts[start : start + BATCH]
        with read_session() as session:
            names = _load_names(session, batch)
        for artifact in batch:
            if artifact.kind is not ArtifactKind.other and artifact.key not in names.named:
                yield artifact, _find_reason(artifact, names, now() - grace_seconds)


def delete_garbage(
    store: ArtifactStore,
    artifacts: Sequence[StoredArtifact],
    grace_seconds: float,
    before_batch: Callable[[], None],
    now: Callable[[], float] = time.time,
) -> Iterator[Removal]:
    """Delete artifacts that are still garbage, and yield each; its name is checked again just before."""
    for start in range(0, len(artifacts), BATCH):
        before_batch()
        for artifact, reason in classify(artifacts[start : start + BATCH], grace_seconds, now):
            if reason is not None:
                store.delete(artifact.key)
                yield Removal(reason=reason, name=artifact.key, size_bytes=artifact.size_bytes)


def list_named(session: Session, artifacts: Sequence[StoredArtifact]) -> set[str]:
    """Return the keys of the artifacts that a row names, also of one that is marked as deleted."""
    names = _load_names(session, artifacts)
    return {artifact.key for artifact in artifacts} & (names.named | names.deleted)


def _load_names(session: Session, batch: Sequence[StoredArtifact]) -> _BatchNames:
    keys = [artifact.key for artifact in batch]
    # With the checkpoints of which the batch contains the weights.
    checkpoint_keys = {*keys, *(key.removesuffix(WEIGHTS_SUFFIX) for key in keys)}
    of_checkpoints = select(col(Checkpoint.artifact)).where(col(Checkpoint.artifact).in_(checkpoint_keys))
    named = set(session.scalars(of_checkpoints))
    for artifact in map(col, (Comparison.artifact, Evaluation.artifact, File.artifact, UploadPart.artifact)):
        named |= set(session.scalars(select(artifact).where(artifact.in_(keys))))
    deleted: set[str] = set()
    for table in (Dataset, Model):
        rows = select(col(table.artifact), col(table.deleted_at)).where(col(table.artifact).in_(keys))
        for key, deleted_at in session.execute(rows):
            (named if deleted_at is None else deleted).add(key)
    of_runs = [a for a in batch if a.kind in OF_RUNS]
    rows_of_runs = select(col(Run.id), col(Run.status), col(Run.attempt), col(Run.log_artifact))
    runs: dict[str, tuple[RunStatus, int]] = {}
    for run_id, status, attempt, log in session.execute(
        rows_of_runs.where(col(Run.id).in_({artifact.run_id for artifact in of_runs}))
    ):
        runs[run_id] = status, attempt
        if log is not None:
            named.add(log.rpartition("/")[0])
    oldest = session.scalar(select(func.min(col(Run.started_at))).where(col(Run.status).in_(HELD)))
    return _BatchNames(named, deleted, runs, oldest.timestamp() if oldest else float("inf"))


def _find_reason(artifact: StoredArtifact, names: _BatchNames, newest: float) -> RemovalReason | None:
    if artifact.kind is ArtifactKind.partial:
        return RemovalReason.partial if artifact.changed_at < newest else None
    if artifact.kind in (ArtifactKind.datasets, ArtifactKind.files, ArtifactKind.models):
        if artifact.key in names.deleted:
            return RemovalReason.deleted
        newest = min(newest, names.oldest_held_start - CLOCK_SKEW_SECONDS)
        return RemovalReason.unnamed if artifact.changed_at < newest else None
    run = names.runs.get(artifact.run_id)
    if run is None:
        return RemovalReason.deleted
    status, attempt = run
    if status.finished:
        # Another process may be about to move the checkpoint's row to its weights.
        is_pending = artifact.key.removesuffix(WEIGHTS_SUFFIX) in names.named
        return None if is_pending and artifact.changed_at >= newest else RemovalReason.unnamed
    # The current attempt publishes its files, checkpoints and evaluations before it commits their rows.
    is_old = artifact.attempt < attempt or artifact.changed_at < newest
    return RemovalReason.unnamed if is_old else None
