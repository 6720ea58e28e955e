"""The command `python -m app gc`."""

import sys

from app.retention.collector import CollectionInterrupted, ForeignStore, collect, hold_storage_lease
from app.retention.host_files import collect_host_files
from app.retention.report import CollectionReport, Removal
from app.settings import Settings
from app.storage.opening import get_store

MEBIBYTE = 1 << 20


def run_gc(settings: Settings, *, dry_run: bool) -> None:
    """Collect garbage of the store and of this host, and print every removal and a summary.

    Exits with status 1 if another process collects, or if the store belongs to another installation.
    """
    try:
        with hold_storage_lease() as lease:
            if lease is None:
                sys.exit("Another process collects garbage or writes a backup. Repeat the command later.")
            report = collect(settings, get_store(), lease, _print_removal, dry_run=dry_run)
    except (ForeignStore, CollectionInterrupted) as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(f"The artifact store cannot be read or written: {error}.")
    host_files = collect_host_files(settings, dry_run=dry_run)
    for file in host_files:
        print(f"host_file\t{file.path}\t{file.size_bytes}")
    _print_summary(report, sum(file.size_bytes for file in host_files), dry_run=dry_run)


def _print_removal(removal: Removal) -> None:
    print(f"{removal.reason}\t{removal.name}\t{removal.size_bytes}", flush=True)


def _print_summary(report: CollectionReport, host_bytes: int, *, dry_run: bool) -> None:
    removed_bytes = sum(count.size_bytes for count in report.removed) + host_bytes
    stored_bytes = sum(kind.size_bytes for kind in report.stored)
    verb = "Would remove" if dry_run else "Removed"
    print(
        f"{verb} {removed_bytes / MEBIBYTE:.1f} MiB. The store {'contains' if dry_run else 'now contains'} "
        f"{stored_bytes / MEBIBYTE:.1f} MiB.",
        file=sys.stderr,
    )
