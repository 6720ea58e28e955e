"""Restoration of a snapshot into an installation without rows and artifacts.

Everything is verified before anything is written. The artifacts come first and the rows in one transaction
after them, so a restoration that stops halfway leaves no row, and can be repeated.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine, update
from sqlmodel import Session, col, select

from app.backup import tables
from app.backup.layout import (
    ARTIFACTS,
    FILES,
    FORMAT,
    TABLES,
    BackedUpFile,
    BackupFailed,
    Snapshot,
    list_snapshots,
    load_files,
    load_snapshot,
)
from app.deployments import lifecycle as deployments
from app.retention.collector import INSTALLATION_KEY
from app.runs import lifecycle
from app.runs.attempt_outcome import AttemptOutcome
from app.storage import migrate
from app.storage.artifacts import ArtifactStore
from app.storage.database import database_now
from app.storage.inventory import list_keys
from app.tables import HELD, CloudState, Deployment, Run, StorageState, Worker
from trainers.runtime.verified_files import hash_file

# A service that has started once has this row, and a mark in its store.
STATE_TABLE = "storage_state"

Report = Callable[[str], None]


@dataclass(frozen=True)
class Restoration:
    """What was restored."""

    snapshot: Snapshot
    folder: Path
    n_requeued: int
    """Runs that a worker held when the backup was made."""
    held_clouds: list[str]
    """Clouds in which nothing is launched or terminated until a person has taken the machines over."""


def restore_backup(
    engine: Engine, store: ArtifactStore, directory: Path, name: str | None, report: Report
) -> Restoration:
    """Restore the newest snapshot of a directory, or the named one.

    Raises:
        BackupFailed: The snapshot is incomplete or damaged, or the installation is not empty.
        OSError: The directory cannot be read, or the store cannot be written.
    """
    folder = _find_snapshot(directory, name)
    snapshot, files = load_snapshot(folder), load_files(folder)
    _check_snapshot(snapshot, folder)
    _check_empty(engine, store, {file.path for file in files})
    _check_files(directory / ARTIFACTS, files, report)
    for count, file in enumerate(files, 1):
        report(f"file {count} of {len(files)}")
        store.import_file(directory / ARTIFACTS / file.path, file.path, file.sha256)
    store.publish_bytes(json.dumps({"installation_id": snapshot.installation_id}).encode(), INSTALLATION_KEY)
    report("writing the database")
    _import_tables(engine, snapshot, folder / TABLES)
    migrate.upgrade_database(engine)
    return Restoration(snapshot, folder, _release_leases(engine), _hold_clouds(engine))


def _find_snapshot(directory: Path, name: str | None) -> Path:
    found = list_snapshots(directory)
    if name is not None:
        found = [folder for folder in found if folder.name == name]
    if not found:
        missing = f"no snapshot {name}" if name else "no complete snapshot"
        raise BackupFailed(f"{directory} contains {missing}.")
    return found[-1]


def _check_snapshot(snapshot: Snapshot, folder: Path) -> None:
    if snapshot.format != FORMAT or snapshot.revision not in migrate.list_revisions():
        raise BackupFailed(
            f"The backup was made by version {snapshot.version} with the schema {snapshot.revision}, which "
            "this version does not have. Restore it with that version or a newer one."
        )
    hashes = {folder / TABLES / f"{name}.jsonl": table.sha256 for name, table in snapshot.tables.items()}
    for path, sha256 in {**hashes, folder / FILES: snapshot.files_sha256}.items():
        if not path.is_file() or hash_file(path) != sha256:
            raise BackupFailed(f"{path} is missing or damaged. Restore another snapshot.")


def _check_files(artifacts: Path, files: list[BackedUpFile], report: Report) -> None:
    for count, file in enumerate(files, 1):
        report(f"verifying file {count} of {len(files)}")
        path = artifacts / file.path
        if not path.is_file() or hash_file(path) != file.sha256:
            raise BackupFailed(f"{path} is missing or damaged. Nothing was restored.")


def _check_empty(engine: Engine, store: ArtifactStore, paths: set[str]) -> None:
    """Refuse an installation with rows, or with files that the backup does not contain."""
    with engine.connect() as connection:
        for table in tables.reflect_tables(connection):
            if table.name != STATE_TABLE and (count := tables.count_rows(connection, table)):
                raise BackupFailed(
                    f"The database is not empty: {table.name} has {count} {'row' if count == 1 else 'rows'}. "
                    "Restore into a new database, while neither API nor workers run."
                )
    foreign = [key for key in list_keys(store) if key not in paths | {INSTALLATION_KEY}]
    if foreign:
        raise BackupFailed(f"The artifact store is not empty: it contains {foreign[0]}. Use an empty one.")


def _import_tables(engine: Engine, snapshot: Snapshot, folder: Path) -> None:
    revision = migrate.get_revisions(engine)[0]
    revisions = migrate.list_revisions()
    if revision is not None and revisions.index(revision) > revisions.index(snapshot.revision):
        migrate.downgrade_database(engine, snapshot.revision)
    else:
        migrate.upgrade_database(engine, snapshot.revision)
    with engine.begin() as connection:
        for table in tables.reflect_tables(connection):
            if table.name == STATE_TABLE:
                connection.execute(table.delete())
            tables.import_table(connection, table, folder / f"{table.name}.jsonl")


def _release_leases(engine: Engine) -> int:
    """Queue runs and deployments that a worker held, and free the lease of the backup; return the runs."""
    with Session(engine) as session, session.begin():
        options = {"synchronize_session": False}
        session.execute(update(StorageState).values(holder=None, lease_expires_at=None))
        stopped = update(Worker).where(col(Worker.stopped_at).is_(None)).values(stopped_at=database_now())
        session.execute(stopped, execution_options=options)
        held = session.exec(select(Run.id).where(col(Run.status).in_(HELD))).all()
        outcome = AttemptOutcome(reason="the installation was restored from a backup")
        for run_id in held:
            lifecycle.end_attempt(session, run_id, outcome, [], max_failures=0)
        leased = update(Deployment).where(col(Deployment.lease_expires_at).is_not(None))
        session.execute(leased.values(lease_expires_at=database_now(-1)), execution_options=options)
        deployments.release_expired(session)
    return len(held)


def _hold_clouds(engine: Engine) -> list[str]:
    """Hold the hosts of clouds, and return the clouds: the original may still run and use their machines."""
    with Session(engine) as session, session.begin():
        held = update(CloudState).values(held_at=database_now(), worker_id=None, lease_expires_at=None)
        names = session.scalars(held.returning(col(CloudState.name)))
        return sorted(names)
