"""Deployments: models kept ready on an engine, leased by the worker that keeps it alive."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Index, text
from sqlmodel import Field, SQLModel

from app.tables.base import Json, enum_type, new_id, time_field
from trainers.configs import EngineKind, ParityMode, Queue


class DeploymentStatus(StrEnum):
    """Where a deployment stands."""

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
        """Whether its engine is gone for good."""
        return self in {DeploymentStatus.stopped, DeploymentStatus.failed}


_LIVE = "status IN ('queued', 'starting', 'ready', 'asleep')"
_HOLDS_NAME = text(f"{_LIVE} AND replaces IS NULL")
_FOLLOWS = text(f"{_LIVE} AND replaces IS NOT NULL")


class Deployment(SQLModel, table=True):
    """A model under a name that clients ask for."""

    __tablename__ = "deployment"
    __table_args__ = (
        # Two holders of one name would make the route table guess; one more may prepare to take it over.
        Index(
            "uq_deployment_live_name",
            "name",
            unique=True,
            sqlite_where=_HOLDS_NAME,
            postgresql_where=_HOLDS_NAME,
        ),
        Index("uq_deployment_next", "name", unique=True, sqlite_where=_FOLLOWS, postgresql_where=_FOLLOWS),
    )

    id: str = Field(default_factory=lambda: new_id("deployment"), primary_key=True)
    name: str
    base: str = Field(description="Hub id, folder, or registry id of whole weights.")
    model_id: str | None = Field(
        default=None, foreign_key="model.id", description="Registry model, adapter or whole."
    )
    engine: EngineKind = Field(sa_type=enum_type(EngineKind))
    queue: Queue = Field(sa_type=enum_type(Queue))
    options: dict[str, Any] = Field(default_factory=dict, sa_type=Json, description="Options of the engine.")
    engine_key: str = Field(default="", description="Deployments with the same one may share an engine.")
    idle_seconds: float = Field(default=0, description="Unused for so long, it goes to sleep; 0 is never.")
    parity_mode: ParityMode = Field(default=ParityMode.off, sa_type=enum_type(ParityMode))
    parity: dict[str, Any] | None = Field(
        default=None, sa_type=Json, description="How the served model compared with the trained one."
    )
    replaces: str | None = Field(
        default=None, description="The deployment that serves this name until this one is ready."
    )

    status: DeploymentStatus = Field(
        default=DeploymentStatus.queued,
        sa_type=enum_type(DeploymentStatus),
    )
    attempt: int = 0
    worker_id: str | None = Field(default=None, foreign_key="worker.id")
    lease_expires_at: datetime | None = time_field()
    address: str | None = Field(default=None, description="Base URL of the engine.")
    upstream_model: str | None = Field(default=None, description="Name by which the engine knows the model.")
    restart_count: int = Field(default=0, description="Times that the engine died and was started again.")
    error: dict[str, Any] | None = Field(default=None, sa_type=Json)
    created_at: datetime = time_field(default_now=True)
    queued_at: datetime | None = time_field()
    ready_at: datetime | None = time_field()
    last_used_at: datetime | None = time_field()
    stopped_at: datetime | None = time_field()
