"""Jobs: ordered stages, as submitted. Their status is derived from their runs and is not stored."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index, UniqueConstraint
from sqlmodel import Field, SQLModel

from app.tables.base import Json, new_id, time_field


class Job(SQLModel, table=True):
    """An ordered list of stages, each executed by one run."""

    __tablename__ = "job"
    __table_args__ = (
        UniqueConstraint("created_by", "idempotency_key"),
        # The id follows the name, so that jobs with the same name are listed by age without a sort.
        Index("ix_job_name_id", "name", "id"),
    )

    id: str = Field(default_factory=lambda: new_id("job"), primary_key=True)
    name: str
    labels: dict[str, str] = Field(default_factory=dict, sa_type=Json)
    priority: int = 0
    spec: dict[str, Any] = Field(default_factory=dict, sa_type=Json)
    created_by: str = Field(
        default="", description="Id of the API key; empty without keys, because SQL's nulls are never equal."
    )
    idempotency_key: str | None = None
    spec_sha256: str = ""
    created_at: datetime = time_field(default_now=True)


class JobLabel(SQLModel, table=True):
    """One label of one job; the primary key is the index that lists the jobs with a label by age."""

    __tablename__ = "job_label"

    key: str = Field(primary_key=True)
    value: str = Field(primary_key=True)
    job_id: str = Field(primary_key=True, foreign_key="job.id")
