"""Aliases, the history of their targets, promotions, and the traffic that a promotion is decided on."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Index, UniqueConstraint, text
from sqlmodel import Field, SQLModel

from app.tables.base import Json, enum_type, new_id, time_field


class Alias(SQLModel, table=True):
    """A name and its current targets: `[{"deployment": name, "share": share of the requests}]`."""

    __tablename__ = "alias"

    name: str = Field(primary_key=True)
    version: int
    targets: list[dict[str, Any]] = Field(sa_type=Json)
    changed_by: str | None = Field(
        default=None, description="Id of the run or of the API key that set the targets."
    )
    created_at: datetime = time_field(default_now=True)
    updated_at: datetime = time_field(default_now=True)


class AliasVersion(SQLModel, table=True):
    """The targets of an alias between two changes; kept after the alias is deleted."""

    __tablename__ = "alias_version"
    __table_args__ = (UniqueConstraint("alias", "version"),)

    id: str = Field(default_factory=lambda: new_id("aliasversion"), primary_key=True)
    alias: str
    version: int
    targets: list[dict[str, Any]] = Field(sa_type=Json)
    restored_version: int | None = Field(
        default=None, description="The version that a rollback brought back."
    )
    changed_by: str | None = Field(
        default=None, description="Id of the run or of the API key that made the change."
    )
    created_at: datetime = time_field(default_now=True)


class PromotionStatus(StrEnum):
    """The state of a promotion."""

    active = "active"
    succeeded = "succeeded"
    rolled_back = "rolled_back"
    ended = "ended"  # The alias was left as it is, because somebody else moved it or by the stage's config.


_IS_ACTIVE = text("status = 'active'")


class Promotion(SQLModel, table=True):
    """The promotion of a run: the step that the alias is in, and the version that a rollback restores.

    `version` is the version of the alias that the step wrote: another one means that somebody else moved it.
    """

    __tablename__ = "promotion"
    __table_args__ = (
        # Two promotions of one alias would move it back and forth.
        Index(
            "uq_promotion_active_alias",
            "alias",
            unique=True,
            sqlite_where=_IS_ACTIVE,
            postgresql_where=_IS_ACTIVE,
        ),
    )

    run_id: str = Field(foreign_key="run.id", primary_key=True)
    alias: str
    deployment: str = Field(description="Name of the deployment that the alias is moved to.")
    deployment_id: str
    status: PromotionStatus = Field(default=PromotionStatus.active, sa_type=enum_type(PromotionStatus))
    version_before: int
    version: int
    step: int = Field(default=0, description="Position of the current step, from 0.")
    step_started_at: datetime = time_field(default_now=True)
    steps: list[dict[str, Any]] = Field(
        default_factory=list, sa_type=Json, description="The measurements of the steps that have ended."
    )
    judgement: dict[str, Any] | None = Field(
        default=None, sa_type=Json, description="The judge's verdict, which is asked for once."
    )


class AliasTraffic(SQLModel, table=True):
    """What one gateway process has counted of an alias's requests to one deployment, since it started.

    Each report replaces the one before it, so that it may be repeated, and a lost one loses nothing.
    """

    __tablename__ = "alias_traffic"

    alias: str = Field(primary_key=True)
    version: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    deployment_id: str = Field(primary_key=True)
    reporter: str = Field(primary_key=True, description="Id of the gateway process.")
    counts: dict[str, Any] = Field(sa_type=Json)
    updated_at: datetime = time_field(default_now=True)
