"""Storage: what takes the space, and collections of garbage."""

from typing import Annotated

import typer

from app.client.commands.output import JsonOption, connect, format_bytes, note, print_json, print_table
from app.client.views.machines import CollectionRecord, StorageRecord

KINDS = ("datasets", "models", "checkpoints", "evaluations", "comparisons")


def storage(
    preview: Annotated[bool, typer.Option(help="Find out what a collection would remove now.")] = False,
    collect: Annotated[
        bool, typer.Option(help="Collect garbage now: what no row names, and what the rules no longer keep.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Collect without a question.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what takes the space; with --preview or --collect, what a collection removes."""
    with connect() as client:
        if not preview and not collect:
            found = client.storage.get()
            print_json(found) if as_json else _print_use(found)
            return
        result = client.storage.collect(dry_run=True)
        removes = collect and result.report is not None and bool(result.report["removed"])
        if removes and not yes:
            if not as_json:
                _print_removed(result)
            typer.confirm("Remove it now?", abort=True, err=True)
        if removes:
            result = client.storage.collect(dry_run=False)
    print_json(result) if as_json else _print_removed(result)
    if result.error:
        note(result.error)
        raise typer.Exit(1)


def _print_use(found: StorageRecord) -> None:
    rows = [
        [kind, getattr(found, kind)["count"], format_bytes(getattr(found, kind)["size_bytes"])]
        for kind in KINDS
    ]
    rows.append(["database", "", format_bytes(found.database_bytes)])
    print_table(["kind", "count", "size"], rows, empty="")
    for disk in found.disks:
        note(
            f"{disk['path']}: {format_bytes(disk['free_bytes'])} of {format_bytes(disk['total_bytes'])} free"
        )
    if found.collecting:
        note("A collection of garbage or a backup is running.")


def _print_removed(result: CollectionRecord) -> None:
    if result.report is None:
        return
    verb = "would be removed" if result.dry_run else "removed"
    rows = [
        [each["reason"], each["count"], format_bytes(each["size_bytes"])] for each in result.report["removed"]
    ]
    print_table(["reason", "count", "size"], rows, empty=f"Nothing {verb}.")
