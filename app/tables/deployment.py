"""Deployments: models kept ready on an engine, each leased by the worker that runs the engine."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Index, and_, case, literal, text
from sqlalchemy.orm import column_property
from sqlmodel import Field, SQLModel, col

from app.storage.database import database_now
from app.tables.base import Json, enum_type, new_id, time_field
from trainers.configs import EngineKind, EngineTask, ParityMode, Pooling, Queue


class DeploymentStatus(StrEnum):
    """The state of a deployment."""

    queued = "queued"
    starting = "starting"
    ready = "ready"
    asleep = "asleep"
    stopping = "stopping"
    stopped = "stopped"
    failed = "failed"

    @property
    def held(self) -> bool:
        """Whether a worker holds the deployment under a lease."""
        return self in {DeploymentStatus.starting, DeploymentStatus.ready, DeploymentStatus.stopping}

    @property
    def finished(self) -> bool:
        """Whether the deployment has ended and will not start again."""
        return self in {DeploymentStatus.stopped, DeploymentStatus.failed}


# Names that people choose contain no colon.
FINE_TUNED_PREFIX = "ft:"
_LIVE = "status IN ('queued', 'starting', 'ready', 'asleep')"
_OWNS_NAME = text(f"{_LIVE} AND replaces IS NULL")
_IS_SUCCESSOR = text(f"{_LIVE} AND replaces IS NOT NULL")


class Deployment(SQLModel, table=True):
    """A model under the name that clients request."""

    __tablename__ = "deployment"
    __table_args__ = (
        # One deployment owns a name, so that routing is unambiguous; one successor may start meanwhile.
        Index(
            "uq_deployment_live_name",
            "name",
            unique=True,
            sqlite_where=_OWNS_NAME,
            postgresql_where=_OWNS_NAME,
        ),
        Index(
            "uq_deployment_next",
            "name",
            unique=True,
            sqlite_where=_IS_SUCCESSOR,
            postgresql_where=_IS_SUCCESSOR,
        ),
    )

    id: str = Field(default_factory=lambda: new_id("deployment"), primary_key=True)
    name: str
    base: str = Field(description="Hub id, folder, or registry id of full weights.")
    model_id: str | None = Field(
        default=None, foreign_key="model.id", description="Registry model: an adapter or full weights."
    )
    engine: EngineKind = Field(sa_type=enum_type(EngineKind))
    queue: Queue = Field(sa_type=enum_type(Queue))
    options: dict[str, Any] = Field(default_factory=dict, sa_type=Json, description="Engine options.")
    task: EngineTask = Field(default=EngineTask.generate, sa_type=enum_type(EngineTask))
    pooling: Pooling | None = Field(
        default=None,
        sa_type=enum_type(Pooling),
        description="Pooling of an embedding model whose files have none.",
    )
    engine_key: str = Field(default="", description="Deployments with the same key can share one engine.")
    idle_seconds: float = Field(
        default=0, description="Idle time after which the engine is stopped; 0 is never."
    )
    store_days: float = Field(
        default=0, description="Days for which answers are kept whose storage is requested; 0 stores none."
    )
    parity_mode: ParityMode = Field(default=ParityMode.off, sa_type=enum_type(ParityMode))
    parity: dict[str, Any] | None = Field(
        default=None, sa_type=Json, description="Comparison of the served model with the trained one."
    )
    replaces: str | None = Field(
        default=None, description="Id of the deployment that serves this name until this one is ready."
    )

    status: DeploymentStatus = Field(
        default=DeploymentStatus.queued,
        sa_type=enum_type(DeploymentStatus),
    )
    attempt: int = Field(default=0, description="Counts claims; the fencing token of a worker's writes.")
    worker_id: str | None = Field(default=None, foreign_key="worker.id")
    lease_expires_at: datetime | None = time_field()
    address: str | None = Field(default=None, description="Base URL of the engine.")
    upstream_model: str | None = Field(default=None, description="Name of the model on the engine.")
    restart_count: int = Field(
        default=0, description="Times that the engine stopped unexpectedly and was restarted."
    )
    error: dict[str, Any] | None = Field(default=None, sa_type=Json)
    created_at: datetime = time_field(default_now=True)
    queued_at: datetime | None = time_field()
    ready_at: datetime | None = time_field()
    last_used_at: datetime | None = time_field()
    stopped_at: datetime | None = time_field()

    @property
    def is_on_demand(self) -> bool:
        """Whether each request may start it again after a failure; its name is that of a fine-tuned model."""
        return self.name.startswith(FINE_TUNED_PREFIX)

    @property
    def current_status(self) -> DeploymentStatus:
        """The status when the row was read: a lease that has ended holds nothing.

        Without it, a deployment of a host that is gone would be called ready until the next sweep.
        """
        # A new object has not been read.
        return self.__dict__.get(_READ_STATUS) or self.status

    @property
    def is_ready(self) -> bool:
        """Whether its engine served requests when the row was read."""
        return self.current_status is DeploymentStatus.ready


_READ_STATUS = "read_status"


def current_status() -> ColumnElement[DeploymentStatus]:
    """Return the current status in SQL, by the database's clock, which decides on leases."""
    has_ended = col(Deployment.lease_expires_at) <= database_now()
    is_stopping = col(Deployment.status) == DeploymentStatus.stopping
    on_demand = col(Deployment.name).startswith(FINE_TUNED_PREFIX, autoescape=True)
    held = col(Deployment.status).in_([status for status in DeploymentStatus if status.held])
    kind = enum_type(DeploymentStatus)
    return case(
        (and_(has_ended, is_stopping, on_demand), literal(DeploymentStatus.asleep, kind)),
        (and_(has_ended, is_stopping), literal(DeploymentStatus.stopped, kind)),
        (and_(has_ended, held), literal(DeploymentStatus.queued, kind)),
        else_=col(Deployment.status),
    )


setattr(Deployment, _READ_STATUS, column_property(current_status()))
