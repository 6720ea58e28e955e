"""Hosts: machines that the service launches in a cloud. `hosts/lifecycle.py` writes statuses."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Index, text
from sqlmodel import Field, SQLModel

from app.tables.base import Json, enum_type, new_id, time_field
from trainers.configs.clouds.offers import CloudName


class HostStatus(StrEnum):
    """The state of a host. Final are `terminated` and `failed`, when no machine of it is billed any more."""

    launching = "launching"  # Without a known machine, though a request may be on its way.
    booting = "booting"
    joining = "joining"  # The machine runs; its worker has not announced a GPU yet.
    ready = "ready"
    stopping = "stopping"  # Its worker saves and leaves.
    terminating = "terminating"
    terminated = "terminated"
    failed = "failed"

    @property
    def finished(self) -> bool:
        """Whether the host has ended and costs nothing more."""
        return self in {HostStatus.terminated, HostStatus.failed}

    @property
    def wanted(self) -> bool:
        """Whether the host is used, or will be."""
        return self in WANTED


class StopReason(StrEnum):
    """Why a host is terminated."""

    requested = "requested"
    idle = "idle"
    spend_cap = "spend_cap"
    job_ended = "job_ended"
    boot_timeout = "boot_timeout"
    worker_lost = "worker_lost"
    interrupted = "interrupted"
    machine_lost = "machine_lost"
    launch_failed = "launch_failed"


WANTED = frozenset({HostStatus.launching, HostStatus.booting, HostStatus.joining, HostStatus.ready})
_UNFINISHED = text("job_id IS NOT NULL AND status NOT IN ('terminated', 'failed')")


class Host(SQLModel, table=True):
    """A machine of a cloud, from the decision to launch it to the end of its cost."""

    __tablename__ = "host"
    __table_args__ = (
        Index("ix_host_status_cloud", "status", "cloud"),
        # Two keepers that overlap must not launch two hosts for one job.
        Index(
            "uq_host_job",
            "job_id",
            unique=True,
            sqlite_where=_UNFINISHED,
            postgresql_where=_UNFINISHED,
        ),
    )

    id: str = Field(default_factory=lambda: new_id("host"), primary_key=True)
    cloud: CloudName = Field(sa_type=enum_type(CloudName))
    type: str
    region: str
    spot: bool = False
    gpu_name: str | None = None
    gpu_count: int = 0
    usd_per_hour: float = Field(description="Price of the offer when the host was requested.")
    max_usd: float
    idle_seconds: float
    job_id: str | None = Field(
        default=None, description="The job for which alone it works. Deleting the job leaves it."
    )
    created_by: str = ""

    status: HostStatus = Field(default=HostStatus.launching, sa_type=enum_type(HostStatus))
    epoch: int = Field(
        default=0,
        description="Number of the launch requests; a machine with another one than the row is surplus.",
    )
    attempted_at: datetime | None = time_field(
        description="When the last launch request was sent that may have created a machine."
    )
    launch_at: datetime | None = time_field(description="The earliest time of the next launch request.")
    machine_id: str | None = None
    account: str | None = Field(
        default=None,
        description="Mark of the cloud account in which the last launch request was sent; other accounts do "
        "not show the machine.",
    )
    address: str | None = None
    ssh_user: str | None = None
    ssh_host_keys: list[str] = Field(default_factory=list, sa_type=Json)
    key_id: str | None = Field(default=None, description="The API key with which its worker joins.")
    error: dict[str, Any] | None = Field(default=None, sa_type=Json)
    problem: dict[str, Any] | None = Field(
        default=None,
        sa_type=Json,
        description="Why the last sweep could not do what the host needs; null once a sweep has done it.",
    )

    created_at: datetime = time_field(default_now=True)
    launched_at: datetime | None = time_field(description="From when on its machine is billed.")
    running_at: datetime | None = time_field()
    ready_at: datetime | None = time_field()
    last_busy_at: datetime | None = time_field()
    stop_at: datetime | None = time_field(description="When its end was decided.")
    stop_reason: StopReason | None = Field(default=None, sa_type=enum_type(StopReason))
    terminate_failures: int = Field(
        default=0, description="Requests to terminate its machine that the cloud has not carried out."
    )
    overdue_at: datetime | None = time_field(description="When its termination was reported as overdue.")
    ended_at: datetime | None = time_field()
    spend_usd: float = Field(default=0, description="Its cost, once it has ended.")
