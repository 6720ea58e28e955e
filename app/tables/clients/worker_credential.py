"""Credentials of workers on other hosts: who has them, and until when. No secret is stored."""

from datetime import datetime

from sqlalchemy import Index, text
from sqlmodel import Field, SQLModel

from app.tables.base import new_id, time_field

_ACTIVE = text("revoked_at IS NULL")


class WorkerCredential(SQLModel, table=True):
    """What one host has received to reach the database and the broker."""

    __tablename__ = "worker_credential"
    __table_args__ = (
        # A host that joins again gets new passwords for the same role and user.
        Index(
            "uq_worker_credential_active",
            "key_id",
            "name",
            unique=True,
            sqlite_where=_ACTIVE,
            postgresql_where=_ACTIVE,
        ),
    )

    id: str = Field(default_factory=lambda: new_id("credential"), primary_key=True)
    key_id: str = Field(description="Id of the API key with which the host joined; empty without one.")
    name: str
    version: str = Field(description="Version of Tunesmith on the host.")
    database_role: str | None = Field(
        default=None, description="PostgreSQL role of this host; None if it shares the control plane's."
    )
    broker_user: str | None = Field(
        default=None, description="Redis ACL user of this host; None if it shares the control plane's."
    )
    broker_password_sha256: str | None = Field(
        default=None, description="With it, the user is created again after a restart of Redis."
    )
    created_at: datetime = time_field(default_now=True)
    updated_at: datetime = time_field(default_now=True)
    revoked_at: datetime | None = time_field()
    ended_at: datetime | None = time_field(
        description="Time from which the role and the user no longer exist, after the revocation."
    )
