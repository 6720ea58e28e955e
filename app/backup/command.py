"""The commands `python -m app backup` and `python -m app restore`."""

import sys
from collections.abc import Callable
from pathlib import Path

from app.backup.backup import create_backup
from app.backup.layout import BackupFailed
from app.backup.restore import restore_backup
from app.retention.collector import CollectionInterrupted, hold_storage_lease
from app.storage.artifacts import get_store
from app.storage.database import get_engine

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


def _make_printer() -> Callable[[str], None]:
    """Return a function that shows progress on a terminal, and nothing elsewhere."""

    def show(text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    return show
