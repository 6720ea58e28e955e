"""Responses of the endpoint of storage."""

from pydantic import BaseModel, Field

from app.retention.report import CollectionReport


class StorageRowsView(BaseModel):
    """What the database names of one kind."""

    count: int = Field(description="Number of rows.")
    size_bytes: int = Field(description="Size of their files.")


class DiskView(BaseModel):
    """A local disk."""

    path: str = Field(description="A folder on the disk.")
    total_bytes: int = Field(description="Size of the disk.")
    free_bytes: int = Field(description="Free space.")


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
