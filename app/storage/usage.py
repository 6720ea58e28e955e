"""Use of disk space, from the rows and from the report of the last collection."""

import shutil
from pathlib import Path

from sqlalchemy import func, select, text
from sqlmodel import Session, col

from app.retention.report import CollectionReport
from app.retention.request import load_request
from app.settings import Settings
from app.settings.retention import RetentionSettings
from app.storage.database import database_now
from app.storage.opening import get_store
from app.storage.schemas import DiskView, RetentionRuleView, StorageRowsView, StorageView, StoredItemView
from app.tables import (
    STORAGE_STATE_ID,
    Checkpoint,
    Comparison,
    Dataset,
    Evaluation,
    Model,
    Run,
    StorageState,
)

ArtifactTable = Dataset | Model | Checkpoint | Evaluation | Comparison
N_LARGEST = 20


def view_storage(session: Session, settings: Settings) -> StorageView:
    """Return the use of disk space; the store itself is not listed."""
    state = session.get(StorageState, STORAGE_STATE_ID)
    report = load_report(session)
    return StorageView(
        installation_id=state.installation_id if state else None,
        datasets=count_rows(session, Dataset),
        models=count_rows(session, Model),
        checkpoints=count_rows(session, Checkpoint),
        evaluations=count_rows(session, Evaluation),
        comparisons=count_rows(session, Comparison),
        database_bytes=measure_database(session),
        disks=measure_disks(settings),
        reclaimable_bytes=report.reclaimable_bytes if report else None,
        last_collection=report,
        collecting=is_collecting(session),
        requested=load_request(session),
        largest=list_largest(session),
        retention=list_retention(settings),
    )


def is_collecting(session: Session) -> bool:
    """Return whether a process holds the lease with which it collects garbage or writes a backup."""
    held = col(StorageState.lease_expires_at) > database_now()
    return session.scalar(select(col(StorageState.id)).where(held)) is not None


def list_largest(session: Session, limit: int = N_LARGEST) -> list[StoredItemView]:
    """Return the objects with the largest files, the largest first."""
    items: list[StoredItemView] = []
    kept = select(Dataset).where(col(Dataset.deleted_at).is_(None)).order_by(col(Dataset.size_bytes).desc())
    items += [_view_item(row, row.name, None) for row in session.scalars(kept.limit(limit))]
    named = select(Model).where(col(Model.deleted_at).is_(None)).order_by(col(Model.size_bytes).desc())
    items += [_view_item(row, row.name, row.run_id) for row in session.scalars(named.limit(limit))]
    for of_run in (Checkpoint, Evaluation, Comparison):
        statement = select(of_run, col(Run.full_name)).join(Run, col(Run.id) == col(of_run.run_id))
        if of_run is Evaluation:
            # The evaluations of a run share an artifact.
            first = select(func.min(col(Evaluation.id))).group_by(col(Evaluation.run_id))
            statement = statement.where(col(Evaluation.id).in_(first))
        largest = statement.order_by(col(of_run.size_bytes).desc()).limit(limit)
        items += [_view_item(row, name, row.run_id) for row, name in session.execute(largest)]
    return sorted(items, key=lambda item: item.size_bytes, reverse=True)[:limit]


def list_retention(settings: Settings) -> list[RetentionRuleView]:
    """Return the settings that decide what collections keep."""
    return [
        RetentionRuleView(
            setting=f"TUNESMITH_{name.upper()}",
            value=getattr(settings, name),
            description=str(field.description),
        )
        for name, field in RetentionSettings.model_fields.items()
    ]


def _view_item(row: ArtifactTable, name: str, run_id: str | None) -> StoredItemView:
    return StoredItemView(
        kind=f"{row.__tablename__}s",
        id=row.id,
        name=name,
        run_id=run_id,
        size_bytes=row.size_bytes,
        created_at=row.created_at,
    )


def load_report(session: Session) -> CollectionReport | None:
    """Return the report of the last collection."""
    state = session.get(StorageState, STORAGE_STATE_ID)
    return CollectionReport.model_validate(state.report) if state and state.report else None


def count_rows(session: Session, table: type[ArtifactTable]) -> StorageRowsView:
    """Return the number of rows of a table, and the size of the artifacts that they name."""
    statement = select(func.count(), func.coalesce(func.sum(col(table.size_bytes)), 0)).select_from(table)
    if table is Dataset or table is Model:
        statement = statement.where(col(table.deleted_at).is_(None))
    count, size_bytes = session.execute(statement).one()
    if table is Evaluation:
        # The evaluations of a run share an artifact.
        artifacts = select(col(Evaluation.artifact), col(Evaluation.size_bytes)).distinct().subquery()
        size_bytes = session.scalar(select(func.coalesce(func.sum(artifacts.c.size_bytes), 0)))
    return StorageRowsView(count=count, size_bytes=int(size_bytes))


def measure_database(session: Session) -> int:
    """Return the size of the database."""
    if session.get_bind().dialect.name == "postgresql":
        statement = "SELECT pg_database_size(current_database())"
    else:
        statement = "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
    size_bytes = session.scalar(text(statement))
    return int(size_bytes)


def measure_disks(settings: Settings) -> list[DiskView]:
    """Return the disks of the data directory and of a local artifact store, each once."""
    store = get_store()
    folders = [settings.data_dir] + ([Path(store.root)] if store.local else [])
    disks: dict[int, DiskView] = {}
    for folder in (folder for folder in folders if folder.exists()):
        usage = shutil.disk_usage(folder)
        view = DiskView(path=str(folder), total_bytes=usage.total, free_bytes=usage.free)
        disks.setdefault(folder.stat().st_dev, view)
    return list(disks.values())
