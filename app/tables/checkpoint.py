"""Checkpoints: resumable states of runs. The files are published before the row is written."""

from datetime import datetime

from sqlalchemy import BigInteger, UniqueConstraint
from sqlmodel import Field, SQLModel

from app.tables.base import new_id, time_field


class Checkpoint(SQLModel, table=True):
    """A folder in the artifact store from which any worker can resume the run."""

    __tablename__ = "checkpoint"
    __table_args__ = (UniqueConstraint("run_id", "step", "attempt"),)

    id: str = Field(default_factory=lambda: new_id("checkpoint"), primary_key=True)
    run_id: str = Field(foreign_key="run.id")
    attempt: int
    step: int
    artifact: str
    sha256: str = Field(description="Hash of the manifest, which contains the hash of every file.")
    size_bytes: int = Field(sa_type=BigInteger)
    resumable: bool = Field(
        default=True, description="False once its optimizer and random state have been removed."
    )
    created_at: datetime = time_field(default_now=True)
