"""A backup of the database and of the artifacts that its rows name, while the service runs.

The rows are read first, in one transaction that sees one moment. The artifacts are copied after that: they
never change, and no garbage is collected meanwhile. Files that an earlier backup into the same directory has
copied are not copied again.
"""

import importlib.metadata
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, Engine, Table, select, text

from app.backup import tables
from app.backup.layout import (
    ARTIFACTS,
    FILES,
    SNAPSHOTS,
    SUMMARY,
    TABLES,
    BackedUpFile,
    BackupFailed,
    Snapshot,
    StoredTable,
    copy_stream,
    list_snapshots,
    load_files,
    lock_directory,
    write_lines,
)
from app.retention.collector import StorageLease
from app.storage.artifacts import ArtifactStore
from app.storage.local_files import fsync_folder
from app.storage.manifest import MANIFEST, ArtifactCorrupt

PARTIAL_SUFFIX = ".part"
# The tables whose artifacts no running job deletes.
LASTING = ("dataset", "model", "evaluation", "comparison", "file")

Report = Callable[[str], None]


@dataclass(frozen=True)
class _NamedArtifact:
    """An artifact that a row of the snapshot names; run files have no hash."""

    table: str
    key: str
    sha256: str | None


def create_backup(
    engine: Engine, store: ArtifactStore, lease: StorageLease, directory: Path, keep: int, report: Report
) -> Snapshot:
    """Write a snapshot, and remove all but the newest `keep` with the files that only they name.

    Raises:
        BackupFailed: Another backup is being written into the directory.
        CollectionInterrupted: The lease was lost, so that artifacts could have been deleted meanwhile.
        OSError: The directory cannot be written, or the store cannot be read.
    """
    with lock_directory(directory):
        name = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        if (directory / SNAPSHOTS / name).exists():
            raise BackupFailed("The last backup is less than a second old.")
        partial = directory / SNAPSHOTS / f"{name}{PARTIAL_SUFFIX}"
        report("reading the database")
        snapshot, named = _export_database(engine, partial / TABLES)
        lost = _copy_artifacts(store, lease, directory, partial, named, snapshot, report)
        _drop_lost_checkpoints(partial / TABLES, snapshot, lost)
        (partial / SUMMARY).write_text(snapshot.model_dump_json(indent=1), encoding="utf-8")
        os.sync()
        partial.rename(directory / SNAPSHOTS / name)
        fsync_folder(directory / SNAPSHOTS)
        _prune(directory, keep)
    return snapshot


def list_named_artifacts(connection: Connection, store: ArtifactStore) -> Iterator[tuple[str, str | None]]:
    """Yield the key and the published hash of each file that the rows name, unless it was deleted since."""
    reflected = {table.name: table for table in tables.reflect_tables(connection)}
    for artifact in _list_named(connection, reflected):
        try:
            yield from list(_list_files(store, artifact))
        except FileNotFoundError:
            continue


def _export_database(engine: Engine, folder: Path) -> tuple[Snapshot, list[_NamedArtifact]]:
    """Write all tables as they were at one moment; return the summary and the artifacts that they name."""
    options: dict[str, object] = {"read_only": True}
    if engine.dialect.name == "postgresql":
        options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    with engine.connect().execution_options(**options) as connection:
        if engine.dialect.name == "postgresql":
            # Between two statements a table is written to the disk, which may take long.
            connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        reflected = {table.name: table for table in tables.reflect_tables(connection)}
        exported: dict[str, StoredTable] = {
            name: tables.export_table(connection, table, folder / f"{name}.jsonl")
            for name, table in reflected.items()
        }
        named = _list_named(connection, reflected)
        revision = MigrationContext.configure(connection).get_current_revision()
        state = reflected["storage_state"]
        installation_id = connection.scalar(select(state.c.installation_id))
    snapshot = Snapshot(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        version=importlib.metadata.version("tunesmith"),
        revision=str(revision),
        installation_id=str(installation_id),
        tables=exported,
        files_sha256="",
        n_files=0,
        size_bytes=0,
    )
    return snapshot, named


def _list_named(connection: Connection, reflected: dict[str, Table]) -> list[_NamedArtifact]:
    named = []
    for name in ("dataset", "model", "checkpoint", "evaluation", "comparison"):
        table = reflected[name]
        # The evaluations of a run share an artifact.
        rows = select(table.c.artifact, table.c.sha256).distinct()
        if "deleted_at" in table.c:
            rows = rows.where(table.c.deleted_at.is_(None))
        named += [_NamedArtifact(name, key, sha256) for key, sha256 in connection.execute(rows)]
    file = reflected["file"]
    contents = select(file.c.artifact, file.c.sha256).where(file.c.artifact.is_not(None))
    named += [_NamedArtifact("file", key, sha256) for key, sha256 in connection.execute(contents)]
    if (part := reflected.get("upload_part")) is not None:
        pending = select(reflected["upload"].c.id).where(reflected["upload"].c.status == "pending")
        parts = select(part.c.artifact, part.c.sha256).where(part.c.upload_id.in_(pending))
        named += [_NamedArtifact("upload_part", key, sha256) for key, sha256 in connection.execute(parts)]
    run = reflected["run"]
    logs = connection.scalars(select(run.c.log_artifact).where(run.c.log_artifact.is_not(None)))
    return named + [_NamedArtifact("run", log.rpartition("/")[0], None) for log in logs]


def _copy_artifacts(
    store: ArtifactStore,
    lease: StorageLease,
    directory: Path,
    partial: Path,
    named: list[_NamedArtifact],
    snapshot: Snapshot,
    report: Report,
) -> set[str]:
    """Copy the files of all artifacts, list them, and return the keys of artifacts that cannot be read."""
    known = {file.path: file for folder in list_snapshots(directory) for file in load_files(folder)}
    lost: set[str] = set()
    files: list[BackedUpFile] = []
    for count, artifact in enumerate(named, 1):
        lease.renew()
        report(f"artifact {count} of {len(named)}")
        try:
            files += _copy_artifact(store, lease, directory / ARTIFACTS, artifact, known)
        except (FileNotFoundError, ArtifactCorrupt):
            lost.add(artifact.key)
    snapshot.n_files, snapshot.files_sha256 = write_lines(partial / FILES, files)
    snapshot.size_bytes = sum(file.size_bytes for file in files)
    # A running job deletes its older checkpoints at any time; run files are not needed.
    snapshot.unreadable = sorted(a.key for a in named if a.key in lost and a.table in LASTING)
    return lost


def _copy_artifact(
    store: ArtifactStore,
    lease: StorageLease,
    target: Path,
    artifact: _NamedArtifact,
    known: dict[str, BackedUpFile],
) -> Iterator[BackedUpFile]:
    """Copy the files of one artifact and yield them; raises ArtifactCorrupt and FileNotFoundError."""
    copied = []
    for path, sha256 in _list_files(store, artifact):
        lease.renew()
        before = known.get(path)
        destination = target / path
        if before is not None and sha256 in (None, before.sha256) and _has_size(destination, before):
            copied.append(before)
            continue
        with store.open(path) as source:
            file = copy_stream(source, destination)
        if sha256 is not None and file.sha256 != sha256:
            destination.unlink()
            raise ArtifactCorrupt(artifact.key, f"{path} has another SHA-256 than when it was published")
        copied.append(file.model_copy(update={"path": path}))
    yield from copied


def _list_files(store: ArtifactStore, artifact: _NamedArtifact) -> Iterator[tuple[str, str | None]]:
    """Yield the key and the published hash of each file of an artifact."""
    if artifact.table in ("dataset", "file", "upload_part"):
        yield artifact.key, artifact.sha256
    elif artifact.sha256 is None:
        yield from ((entry.key, None) for entry in store.list_folder(artifact.key))
    else:
        for file in store.read_manifest(artifact.key, artifact.sha256):
            yield f"{artifact.key}/{file['path']}", file["sha256"]
        yield f"{artifact.key}/{MANIFEST}", artifact.sha256


def _has_size(path: Path, file: BackedUpFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size_bytes


def _drop_lost_checkpoints(folder: Path, snapshot: Snapshot, lost: set[str]) -> None:
    """Remove the rows of checkpoints that were deleted between the snapshot and their copy."""
    path = folder / "checkpoint.jsonl"
    rows = tables.read_rows(path)
    kept = [row for row in rows if row["artifact"] not in lost]
    if len(kept) < len(rows):
        count, sha256 = write_lines(path, kept)
        snapshot.tables["checkpoint"] = StoredTable(rows=count, sha256=sha256)


def _prune(directory: Path, keep: int) -> None:
    """Remove older and incomplete snapshots, and the files that no remaining one names."""
    kept = list_snapshots(directory)[-keep:]
    for folder in (directory / SNAPSHOTS).iterdir():
        if folder not in kept:
            shutil.rmtree(folder)
    named = {file.path for folder in kept for file in load_files(folder)}
    artifacts = directory / ARTIFACTS
    for path in sorted(artifacts.rglob("*"), reverse=True):
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.relative_to(artifacts).as_posix() not in named:
            path.unlink()
