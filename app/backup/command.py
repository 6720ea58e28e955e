"""The commands `python -m app backup` and `python -m app restore`."""

import sys
from collections.abc import Callable
from pathlib import Path

from sqlalchemy.exc import DataError

from app.backup.backup import create_backup
from app.backup.layout import BackupFailed
from app.backup.move import move_installation
from app.backup.restore import restore_backup
from app.retention.collector import CollectionInterrupted, hold_storage_lease
from app.scheduling.incidents import describe_error
from app.settings import Settings
from app.storage.artifacts import ArtifactStore
from app.storage.database import DATABASE_UNAVAILABLE, get_engine
from app.storage.opening import get_store, open_artifact_store

MEBIBYTE = 1 << 20


def run_backup(directory: Path, keep: int) -> None:
    """Write a backup and print its size; exit with status 1 if it fails or lacks something."""
    try:
        with hold_storage_lease() as lease:
            if lease is None:
                sys.exit("Another process collects garbage or writes a backup. Repeat the command later.")
            snapshot = create_backup(get_engine(), get_store(), lease, directory, keep, _make_printer())
    except (BackupFailed, CollectionInterrupted) as error:
        sys.exit(f"\nThe backup was not written. {error}")
    except OSError as error:
        sys.exit(f"\nThe backup was not written: {error}.")
    rows = sum(table.rows for table in snapshot.tables.values())
    print(
        f"Backed up {rows} rows and {snapshot.n_files} files, {snapshot.size_bytes / MEBIBYTE:.1f} MiB, "
        f"into {directory}."
    )
    if snapshot.unreadable:
        sys.exit(
            f"The store had lost or damaged {len(snapshot.unreadable)} of the artifacts, so the backup lacks "
            f"them: {', '.join(snapshot.unreadable)}. Run `python -m app verify`."
        )


def run_restore(directory: Path, name: str | None) -> None:
    """Restore a backup and print what it contains; exit with status 1 if it cannot be restored."""
    try:
        restored = restore_backup(get_engine(), get_store(), directory, name, _make_printer())
    except BackupFailed as error:
        sys.exit(f"\n{error}")
    except OSError as error:
        sys.exit(f"\nThe backup was not restored: {error}.")
    rows = sum(table.rows for table in restored.snapshot.tables.values())
    print(
        f"Restored {rows} rows and {restored.snapshot.n_files} files of the snapshot {restored.folder.name}. "
        f"{restored.n_requeued} {'run' if restored.n_requeued == 1 else 'runs'} in progress will continue "
        "from the last checkpoint."
    )
    if restored.held_clouds:
        print(
            f"This installation has had hosts at {' and '.join(restored.held_clouds)}. Nothing is launched "
            "or terminated there, and machines may be billed, until you confirm that the original "
            "installation has ended: read GET /api/v1/hosts and GET /api/v1/hosts/offers, then POST "
            "/api/v1/hosts/take-over. If the original still runs, give this copy no keys of a cloud."
        )


def run_move(settings: Settings, url: str, artifacts_url: str) -> None:
    """Move the embedded data and print what was moved, and what to set; exit with 1 if nothing was moved."""
    try:
        new_store = _open_store(settings, artifacts_url) if artifacts_url else None
        moved = move_installation(get_engine(), get_store(), url, new_store, _make_printer())
    except BackupFailed as error:
        sys.exit(f"\n{error}")
    except (OSError, ImportError, ValueError, *DATABASE_UNAVAILABLE, DataError) as error:
        sys.exit(f"\nNothing was moved: {describe_error(error)}.")
    files = f" and {moved.n_files} files" if artifacts_url else ""
    print(
        f"Moved {moved.n_rows} rows of {moved.n_tables} tables{files}; counts and hashes agree. Set "
        f"TUNESMITH_DATABASE_URL{' and TUNESMITH_ARTIFACTS_URL' if artifacts_url else ''} to the new "
        "addresses before you start the service again; the old database stays as it is."
    )


def _open_store(settings: Settings, url: str) -> ArtifactStore:
    return open_artifact_store(settings.model_copy(update={"artifacts_url": url}))


def _make_printer() -> Callable[[str], None]:
    """Return a function that shows progress on a terminal, and nothing elsewhere."""

    def show(text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    return show
