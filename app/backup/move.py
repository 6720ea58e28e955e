"""The move of the embedded installation into PostgreSQL, and of its artifacts into another store.

The artifacts come first; a repetition skips those that were copied. Then all rows are inserted and compared
in one transaction of the target: either it has all of them, or none. The source stays as it is.
"""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import JSON, Connection, Engine, Table, text
from sqlalchemy.exc import SQLAlchemyError

from app.backup import tables
from app.backup.backup import list_named_artifacts
from app.backup.layout import BackupFailed
from app.backup.restore import STATE_TABLE
from app.retention.collector import INSTALLATION_KEY
from app.storage import migrate
from app.storage.artifacts import ArtifactStore
from app.storage.database import create_database_engine
from app.storage.manifest import ArtifactCorrupt
from trainers.runtime.verified_files import hash_file

Report = Callable[[str], None]
LOCK_SECONDS = 2
_MODULUS = 1 << 256


@dataclass(frozen=True)
class MoveResult:
    """What was moved."""

    n_tables: int
    n_rows: int
    n_files: int


def move_installation(
    source: Engine, store: ArtifactStore, url: str, new_store: ArtifactStore | None, report: Report
) -> MoveResult:
    """Copy all rows, and the artifacts if there is a new store, and verify both.

    Raises:
        BackupFailed: The service runs, the target is not empty, or a row or file differs after its copy.
        OSError: A store cannot be read or written.
    """
    if source.dialect.name != "sqlite":
        raise BackupFailed("Only the embedded database, SQLite, is moved; use backup and restore otherwise.")
    if new_store is not None and not store.local:
        raise BackupFailed("The artifacts are in a store of their own already: leave --artifacts out.")
    target = _open_target(url)
    try:
        with _stopped_service(source), source.execution_options(read_only=True).connect() as rows:
            _check_empty(target)
            migrate.upgrade_database(target)
            n_files = 0 if new_store is None else _copy_artifacts(rows, store, new_store, report)
            n_tables, n_rows = _copy_rows(rows, target, report)
    finally:
        target.dispose()
    return MoveResult(n_tables, n_rows, n_files)


def _open_target(url: str) -> Engine:
    """Return the engine of the target; raises BackupFailed without the URL, which has a password."""
    try:
        target = create_database_engine(url)
    except (SQLAlchemyError, ModuleNotFoundError, ValueError):
        target = None
    if target is None or target.dialect.name != "postgresql":
        raise BackupFailed(
            "The target must be postgresql://user:password@host/database; write `@`, `:` and `/` of a "
            "password as `%40`, `%3A` and `%2F`."
        )
    return target


@contextmanager
def _stopped_service(source: Engine) -> Iterator[None]:
    """Require that no other process has the database open, and keep others from writing for the block."""
    source.dispose()
    path = str(source.url.database)
    if not Path(path).is_file():
        raise BackupFailed(
            f"There is no database {path}. Set TUNESMITH_DATA_DIR to the folder of the installation to move."
        )
    lock = sqlite3.connect(path, timeout=LOCK_SECONDS, isolation_level=None)
    try:
        # A change of the journal needs the file for itself, so it fails while any process has it open.
        lock.execute("PRAGMA journal_mode = DELETE")
        lock.execute("PRAGMA journal_mode = WAL")
        lock.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        lock.close()
        raise BackupFailed(
            f"The database {path} is in use. Stop the service and its workers, and repeat the command."
        ) from error
    try:
        yield
    finally:
        lock.close()


def _check_empty(target: Engine) -> None:
    with target.connect() as connection:
        for table in tables.reflect_tables(connection):
            count = tables.count_rows(connection, table)
            if count and table.name != STATE_TABLE:
                raise BackupFailed(
                    f"The target is not empty: {table.name} has {count} {'row' if count == 1 else 'rows'}. "
                    "Nothing was changed; name an empty database, which no service uses."
                )


def _copy_artifacts(rows: Connection, store: ArtifactStore, new_store: ArtifactStore, report: Report) -> int:
    """Copy the files that rows name, and the mark of the installation; return their number."""
    _check_owner(store, new_store)
    keys = [key for key, _ in list_named_artifacts(rows, store)]
    if store.exists(INSTALLATION_KEY):
        keys.append(INSTALLATION_KEY)
    for count, key in enumerate(keys, 1):
        report(f"file {count} of {len(keys)}")
        path = store.local_path(key)
        assert path is not None, "the embedded store is a folder"
        sha256 = hash_file(path)
        if not _has_file(new_store, key, sha256):
            new_store.import_file(path, key, sha256)
    return len(keys)


def _has_file(store: ArtifactStore, key: str, sha256: str) -> bool:
    try:
        store.verify_file(key, sha256)
    except (ArtifactCorrupt, FileNotFoundError):
        return False
    return True


def _check_owner(store: ArtifactStore, new_store: ArtifactStore) -> None:
    """Raise BackupFailed for a store with the mark of another installation, which would delete the files."""
    found = _read_mark(new_store)
    if found is not None and found != _read_mark(store):
        raise BackupFailed(
            "The new artifact store belongs to another installation. Nothing was moved; name an empty one."
        )


def _read_mark(store: ArtifactStore) -> bytes | None:
    if not store.exists(INSTALLATION_KEY):
        return None
    with store.open(INSTALLATION_KEY) as file:
        return file.read()


def _copy_rows(rows: Connection, target: Engine, report: Report) -> tuple[int, int]:
    """Insert all rows in one transaction, and compare them with the source before it is committed."""
    n_rows = 0
    with TemporaryDirectory() as folder, target.begin() as connection:
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        sources = {table.name: table for table in tables.reflect_tables(rows)}
        moved = tables.reflect_tables(connection)
        if set(sources) != {table.name for table in moved}:
            raise BackupFailed("The databases have different tables; both need the schema of this version.")
        for table in moved:
            report(f"table {table.name}")
            if table.name == STATE_TABLE:
                connection.execute(table.delete())
            path = Path(folder) / "rows.jsonl"
            tables.export_table(rows, sources[table.name], path)
            tables.import_table(connection, table, path)
            before, after = (
                digest_rows(rows, sources[table.name], table),
                digest_rows(connection, table, table),
            )
            if before != after:
                raise BackupFailed(
                    f"The rows of {table.name} differ after the copy: {before[0]} in the source and "
                    f"{after[0]} in the target. Nothing was changed."
                )
            n_rows += before[0]
    return len(moved), n_rows


def digest_rows(connection: Connection, table: Table, types: Table) -> tuple[int, int]:
    """Return the number of rows, and the sum of their hashes, which depends on no order.

    Databases sort text by different rules, and PostgreSQL writes the keys of JSON in an order of its own.
    `types` is the table whose columns say which of them are JSON.
    """
    parsed = [column.name for column in types.columns if isinstance(column.type, JSON)]
    count, total = 0, 0
    for row in tables.iterate_rows(connection, table):
        values: dict[str, Any] = {
            name: json.loads(value) if name in parsed and isinstance(value, str) else value
            for name, value in row.items()
        }
        content = json.dumps(values, sort_keys=True, ensure_ascii=False, default=str).encode(
            "utf-8", "replace"
        )
        total = (total + int.from_bytes(hashlib.sha256(content).digest())) % _MODULUS
        count += 1
    return count, total
