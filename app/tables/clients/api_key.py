"""API keys, of which only the hash is stored."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import BigInteger
from sqlmodel import Field, SQLModel

from app.tables.base import Json, new_id, time_field


class Scope(StrEnum):
    """A permission of a key: each is granted separately, and `admin` includes all of them.

    `worker` is for a host that joins: its own worker, and the artifacts.
    """

    read = "read"
    write = "write"
    inference = "inference"
    worker = "worker"
    admin = "admin"


class ApiKey(SQLModel, table=True):
    """A key, stored as its SHA-256: keys are random, so a slow hash would not add protection."""

    __tablename__ = "api_key"

    id: str = Field(default_factory=lambda: new_id("key"), primary_key=True)
    name: str
    sha256: str = Field(unique=True)
    hint: str = Field(description="The first characters of the key, to recognize it.")
    scopes: list[str] = Field(default_factory=list, sa_type=Json)
    requests_per_minute: int | None = Field(
        default=None, description="Requests to models per minute; None is unlimited."
    )
    concurrent_requests: int | None = Field(default=None, description="Open requests; None is unlimited.")
    tokens_per_day: int | None = Field(
        default=None,
        sa_type=BigInteger,
        description="Tokens of prompts and completions on a day in UTC; None is unlimited.",
    )
    models: list[str] | None = Field(
        default=None, sa_type=Json, description="Names that it may use; None means all."
    )
    created_at: datetime = time_field(default_now=True)
    last_used_at: datetime | None = time_field()
    revoked_at: datetime | None = time_field()
