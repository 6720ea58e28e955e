"""Responses of the endpoint of storage."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from app.retention.report import CollectionReport, RequestedCollectionView


class StorageRowsView(BaseModel):
    """What the database names of one kind."""

    count: int = Field(description="Number of rows.")
    size_bytes: int = Field(description="Size of their files.")


class DiskView(BaseModel):
    """A local disk."""

    path: str = Field(description="A folder on the disk.")
    total_bytes: int = Field(description="Size of the disk.")
    free_bytes: int = Field(description="Free space.")


class StoredItemView(BaseModel):
    """An object with files in the artifact store."""

    kind: str = Field(
        description="`datasets`, `models`, `checkpoints`, `evaluations` (one per run, whose files all share) "
        "or `comparisons`."
    )
    id: str = Field(description="Id of the object.")
    name: str = Field(description="Its name; of a checkpoint, an evaluation or a comparison that of its run.")
    run_id: str | None = Field(description="The run that has written it; null for an upload or an import.")
    size_bytes: int = Field(description="Size of its files.")
    created_at: datetime = Field(description="When it was stored.")


class RetentionRuleView(BaseModel):
    """A setting that decides what is kept, and for how long."""

    setting: str = Field(description="Name of the variable: `TUNESMITH_…`.")
    value: Any = Field(description="Its value in the process that responds.")
    description: str = Field(description="What it decides.")


class StorageView(BaseModel):
    """Disk space by kind, and the last collection of garbage."""

    installation_id: str | None = Field(
        description="Id of the installation that the artifact store belongs to; null before the first "
        "collection."
    )
    datasets: StorageRowsView = Field(description="The datasets.")
    models: StorageRowsView = Field(description="The models.")
    checkpoints: StorageRowsView = Field(description="The checkpoints.")
    evaluations: StorageRowsView = Field(description="The evaluations, with their rows and reports.")
    comparisons: StorageRowsView = Field(description="The comparisons, with their rows and reports.")
    database_bytes: int = Field(description="Size of the database.")
    disks: list[DiskView] = Field(
        description="The disks of this host's data directory and, if it is local, of the artifact store."
    )
    reclaimable_bytes: int | None = Field(
        description="Size of the files that no row names, at the last collection; null before the first."
    )
    last_collection: CollectionReport | None = Field(description="The last collection.")
    collecting: bool = Field(
        description="Whether a process collects garbage or writes a backup now; only one can at a time."
    )
    requested: RequestedCollectionView | None = Field(
        description="The last collection that was requested with `POST /api/v1/storage/collections`."
    )
    largest: list[StoredItemView] = Field(description="The largest objects, at most 20.")
    retention: list[RetentionRuleView] = Field(
        description="What the collections keep, and for how long: the settings of retention."
    )
