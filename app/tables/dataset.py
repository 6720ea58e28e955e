"""Datasets: immutable files of rows, addressed by the hash of their content."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger
from sqlmodel import Field, SQLModel

from app.tables.base import Json, enum_type, new_id, time_field
from trainers.data.formats import RowFormat


class Dataset(SQLModel, table=True):
    """A file of rows and its validation report."""

    __tablename__ = "dataset"

    id: str = Field(default_factory=lambda: new_id("dataset"), primary_key=True)
    name: str = Field(index=True)
    sha256: str = Field(unique=True)
    artifact: str = Field(description="Key of the file in the artifact store.")
    size_bytes: int = Field(sa_type=BigInteger)
    format: RowFormat | None = Field(default=None, sa_type=enum_type(RowFormat))
    row_count: int = 0
    fault_count: int = 0
    report: dict[str, Any] = Field(default_factory=dict, sa_type=Json)
    created_at: datetime = time_field(default_now=True)
    deleted_at: datetime | None = time_field(
        description="Set when its file was deleted; the row remains for the models trained on it."
    )

    @property
    def trainable(self) -> bool:
        """Whether every row is valid; a file with a fault is stored, but no stage reads it."""
        return self.fault_count == 0 and self.row_count > 0
