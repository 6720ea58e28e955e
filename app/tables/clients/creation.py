"""Creations: what recent requests have created, for clients that repeat a request."""

from datetime import datetime

from sqlalchemy import Index, UniqueConstraint
from sqlmodel import Field, SQLModel

from app.tables.base import new_id, time_field


class CreationRecord(SQLModel, table=True):
    """A request that has created something, inserted in the transaction that created it."""

    __tablename__ = "creation"
    __table_args__ = (
        # SQL's nulls are never equal, so requests without a key do not exclude each other.
        UniqueConstraint("caller", "route", "idempotency_key"),
        Index("ix_creation_body", "body_sha256", "id"),
        Index("ix_creation_created_at", "created_at"),
    )

    id: str = Field(default_factory=lambda: new_id("creation"), primary_key=True)
    caller: str = Field(description="Id of the API key; empty without keys.")
    route: str = Field(description="Method and path.")
    idempotency_key: str | None = None
    body_sha256: str
    retry_count: int = Field(description="How often the client had sent the request before.")
    object_id: str = Field(description="Id of what it has created.")
    created_at: datetime = time_field(default_now=True)
    held_until: datetime = time_field(
        default_now=True, description="Until then the response is on its way to the client that caused it."
    )
    delivered_at: datetime | None = time_field(
        description="Time at which the response was sent completely to a client that was connected."
    )
