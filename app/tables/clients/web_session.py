"""Sessions of the pages: a browser that has logged in with an API key."""

from datetime import datetime

from sqlmodel import Field, SQLModel

from app.tables.base import new_id, time_field


class WebSession(SQLModel, table=True):
    """A login, stored as the SHA-256 of its cookie; it has the scopes that its key has now."""

    __tablename__ = "web_session"

    id: str = Field(default_factory=lambda: new_id("websession"), primary_key=True)
    sha256: str = Field(unique=True)
    key_id: str = Field(index=True, description="Id of the API key; its row may be deleted.")
    created_at: datetime = time_field(default_now=True)
    last_seen_at: datetime | None = time_field()
    expires_at: datetime | None = time_field(index=True)
