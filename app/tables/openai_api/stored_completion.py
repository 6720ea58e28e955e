"""Chat completions and responses that were stored at the request of a client."""

from datetime import datetime

from sqlalchemy import Index, Text
from sqlmodel import Field, SQLModel

from app.storage.database import UTCDateTime
from app.tables.base import Json, time_field


class StoredCompletion(SQLModel, table=True):
    """A chat completion and its request, as JSON texts: their text may contain NUL, which JSONB refuses."""

    __tablename__ = "stored_completion"
    # A list is of one key, by age.
    __table_args__ = (Index("ix_stored_completion_key_id_id", "key_id", "id"),)

    id: str = Field(primary_key=True)
    key_id: str = Field(description="Id of the API key of the request; empty on a service without keys.")
    model: str = Field(description="Model name of the request.")
    deployment_id: str
    client_metadata: dict[str, str] = Field(sa_type=Json, description="The client's own pairs.")
    request: str = Field(sa_type=Text, description="The request.")
    completion: str = Field(sa_type=Text, description="The chat completion.")
    created_at: datetime = time_field(default_now=True)
    expires_at: datetime = Field(sa_type=UTCDateTime, index=True, description="From then on it is deleted.")


class StoredResponse(SQLModel, table=True):
    """A response and the input items of its request, as JSON texts."""

    __tablename__ = "stored_response"

    id: str = Field(primary_key=True)
    key_id: str = Field(description="Id of the API key of the request; empty on a service without keys.")
    model: str = Field(description="Model name of the request.")
    deployment_id: str
    previous_response_id: str | None = Field(
        default=None, description="The response that this one continues."
    )
    input_items: str = Field(sa_type=Text, description="The list of the request's own input items.")
    response: str = Field(sa_type=Text, description="The response.")
    size_bytes: int = Field(description="Size of both texts.")
    created_at: datetime = time_field(default_now=True)
    expires_at: datetime = Field(sa_type=UTCDateTime, index=True, description="From then on it is deleted.")
