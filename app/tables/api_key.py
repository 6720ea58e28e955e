"""API keys: only their hash is kept."""

from datetime import datetime
from enum import StrEnum

from sqlmodel import Field, SQLModel

from app.tables.base import Json, new_id, time_field


class Scope(StrEnum):
    """What a key allows: each scope is given by itself, and `admin` gives all."""

    read = "read"
    write = "write"
    inference = "inference"
    admin = "admin"


class ApiKey(SQLModel, table=True):
    """A key by its SHA-256: keys are random, so a slow hash would guard nothing more."""

    __tablename__ = "api_key"

    id: str = Field(default_factory=lambda: new_id("key"), primary_key=True)
    name: str
    sha256: str = Field(unique=True)
    hint: str = Field(description="The key's first characters, to recognise it by.")
    scopes: list[str] = Field(default_factory=list, sa_type=Json)
    requests_per_minute: int | None = Field(default=None, description="Requests to models; None is no limit.")
    concurrent_requests: int | None = None
    created_at: datetime = time_field(default_now=True)
    last_used_at: datetime | None = time_field()
    revoked_at: datetime | None = time_field()
