"""Aliases: names that route to deployments and can be changed, with the history of their targets."""

from datetime import datetime
from typing import Any

from sqlalchemy import UniqueConstraint
from sqlmodel import Field, SQLModel

from app.tables.base import Json, new_id, time_field


class Alias(SQLModel, table=True):
    """A name and its current targets: `[{"deployment": name, "share": share of the requests}]`."""

    __tablename__ = "alias"

    name: str = Field(primary_key=True)
    version: int
    targets: list[dict[str, Any]] = Field(sa_type=Json)
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
    created_at: datetime = time_field(default_now=True)
