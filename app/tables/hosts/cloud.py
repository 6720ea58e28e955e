"""Clouds: what each offers, and the worker that keeps its hosts; and the hosts that jobs ask for."""

from datetime import datetime
from typing import Any

from sqlmodel import Field, SQLModel

from app.tables.base import Json, enum_type, time_field
from trainers.configs.clouds.offers import CloudName


class CloudState(SQLModel, table=True):
    """A cloud. Its lease lets one worker at a time keep its hosts; the epoch fences the writes of others."""

    __tablename__ = "cloud"

    name: CloudName = Field(sa_type=enum_type(CloudName), primary_key=True)
    worker_id: str | None = Field(default=None, description="The worker that keeps its hosts.")
    epoch: int = Field(default=0, description="Counts the keepers; the fencing token of their writes.")
    lease_expires_at: datetime | None = time_field()
    swept_at: datetime | None = time_field(
        description="When all machines and rows were last compared without a failure."
    )
    offers: list[dict[str, Any]] = Field(default_factory=list, sa_type=Json)
    offers_at: datetime | None = time_field()
    error: str | None = Field(default=None, description="Why the last sweep failed.")
    orphan_count: int = Field(default=0, description="Machines without a row that were terminated.")
    account: str | None = Field(
        default=None, description="Mark of the account of the keys with which it was last swept."
    )
    held_at: datetime | None = time_field(
        description="When the database was restored: nothing is launched or terminated until a person has "
        "confirmed that the original installation has ended."
    )
    listed_at: datetime | None = time_field(description="When its machines were last listed.")
    gaps: list[list[str]] = Field(
        default_factory=list,
        sa_type=Json,
        description="Ids, from and to, of hosts that were requested in times without a sweep. Machines "
        "without a row in them may be of a newer state of the database, which was undone by a restoration.",
    )
    unclaimed: list[dict[str, Any]] = Field(
        default_factory=list,
        sa_type=Json,
        description="Machines of Tunesmith that the service neither uses nor terminates.",
    )


class JobHost(SQLModel, table=True):
    """The host that a job asked for. One is launched while a run of the job waits for it."""

    __tablename__ = "job_host"

    job_id: str = Field(primary_key=True)
    cloud: CloudName = Field(sa_type=enum_type(CloudName))
    type: str
    region: str
    spot: bool = False
    max_usd: float = Field(description="US dollars that all hosts of the job may cost together.")
    unoffered_at: datetime | None = time_field(description="Since when the cloud does not offer the type.")
    counted_from: datetime | None = time_field(
        description="Only hosts that were requested later count as attempts that failed: a person has "
        "started the job again."
    )
