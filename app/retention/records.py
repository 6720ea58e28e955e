"""Retention of rows that nothing refers to any more, and of the logs and other files of runs by size."""

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import ColumnElement, delete, exists, func, or_, select, update
from sqlalchemy.orm import aliased
from sqlmodel import col

from app.retention.checkpoints import DAY_SECONDS
from app.retention.report import Removal, RemovalReason
from app.settings import Settings
from app.storage.artifacts import ArtifactStore
from app.storage.database import database_now, read_session, transaction
from app.storage.inventory import ArtifactKind, StoredArtifact
from app.tables import (
    FINISHED,
    AliasVersion,
    ApiKey,
    Dataset,
    Deployment,
    DeploymentStatus,
    File,
    Model,
    Run,
    TokenUse,
    WebhookDelivery,
    WebSession,
    Worker,
    WorkerCredential,
)

# Of each alias; a rollback to an older version is not possible.
MAX_ALIAS_VERSIONS = 1000


def delete_records(settings: Settings, *, dry_run: bool) -> Iterator[Removal]:
    """Delete the rows of what ended long ago, such as workers, keys, deliveries, datasets, models and logins.

    Of the versions of an alias, the newest stay.
    """
    expired: list[tuple[type[Any], ColumnElement[bool]]] = [
        (WebSession, col(WebSession.expires_at) < database_now())
    ]
    if settings.record_days:
        expired += _expired_records(database_now(-settings.record_days * DAY_SECONDS))
    for table, condition in expired:
        with read_session() as session:
            ids = session.scalars(select(table.id).where(condition)).all()
        if ids and not dry_run:
            statement = delete(table).where(condition).execution_options(synchronize_session=False)
            with transaction() as session:
                session.execute(statement)
        yield from (Removal(reason=RemovalReason.record_expired, name=row_id) for row_id in ids)


def drop_run_files(
    store: ArtifactStore, settings: Settings, artifacts: Sequence[StoredArtifact], *, dry_run: bool
) -> Iterator[Removal]:
    """Delete the files of the runs that ended first, until those of the others are within the limit."""
    sizes = {a.key: a.size_bytes for a in artifacts if a.kind is ArtifactKind.runs}
    surplus = sum(sizes.values()) - settings.max_run_files_bytes
    if not settings.max_run_files_bytes or surplus <= 0:
        return
    finished = select(col(Run.id), col(Run.log_artifact)).where(
        col(Run.status).in_(FINISHED), col(Run.log_artifact).is_not(None)
    )
    with read_session() as session:
        runs = session.execute(finished.order_by(col(Run.finished_at), col(Run.id))).all()
    for run_id, log_artifact in runs:
        if surplus <= 0:
            return
        key = log_artifact.rpartition("/")[0]
        if not (size_bytes := sizes.get(key, 0)):
            continue
        if not dry_run:
            is_same = col(Run.id) == run_id, col(Run.log_artifact) == log_artifact
            statement = update(Run).where(*is_same, col(Run.status).in_(FINISHED)).values(log_artifact=None)
            statement = statement.execution_options(synchronize_session=False)
            with transaction() as session:
                if session.scalar(statement.returning(col(Run.id))) is None:
                    continue
            store.delete(key)
        surplus -= size_bytes
        yield Removal(reason=RemovalReason.run_files_limit, name=key, size_bytes=size_bytes)


def _expired_records(before: Any) -> list[tuple[type[Any], ColumnElement[bool]]]:
    ended = (DeploymentStatus.stopped, DeploymentStatus.failed)
    child, later = aliased(Model), aliased(AliasVersion)
    versions = select(func.max(col(later.version))).where(col(later.alias) == col(AliasVersion.alias))
    newest_version = versions.correlate(AliasVersion).scalar_subquery()
    return [
        (
            Worker,
            (func.coalesce(col(Worker.last_seen_at), col(Worker.started_at)) < before)
            & ~exists().where(col(Run.worker_id) == col(Worker.id))
            & ~exists().where(col(Deployment.worker_id) == col(Worker.id)),
        ),
        (Deployment, col(Deployment.status).in_(ended) & (col(Deployment.stopped_at) < before)),
        (ApiKey, col(ApiKey.revoked_at) < before),
        (WorkerCredential, col(WorkerCredential.ended_at) < before),
        (TokenUse, col(TokenUse.day) < func.date(before)),
        (WebhookDelivery, col(WebhookDelivery.finished_at) < before),
        (AliasVersion, col(AliasVersion.version) <= newest_version - MAX_ALIAS_VERSIONS),
        (
            Model,
            (col(Model.deleted_at) < before)
            & ~exists().where(
                or_(col(child.parent_id) == col(Model.id), col(child.base) == col(Model.id)),
                col(child.id) != col(Model.id),
            )
            & ~exists().where(col(Run.model_id) == col(Model.id))
            & ~exists().where(col(Deployment.model_id) == col(Model.id)),
        ),
        (
            Dataset,
            (col(Dataset.deleted_at) < before)
            & ~exists().where(col(Model.dataset_id) == col(Dataset.id))
            & ~exists().where(col(File.dataset_id) == col(Dataset.id)),
        ),
    ]
