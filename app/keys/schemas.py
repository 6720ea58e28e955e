"""Requests and responses of the endpoints of API keys."""

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from app.http.auth import Caller
from app.tables import Scope
from trainers.configs.base import PRINTABLE_PATTERN, Config

KeyName = Annotated[
    str, StringConstraints(min_length=1, max_length=100, strip_whitespace=True, pattern=PRINTABLE_PATTERN)
]
RequestsPerMinute = Annotated[
    int | None,
    Field(
        ge=1,
        le=1_000_000,
        description="Maximum rate of requests to models; null means no limit. A key that was not used for a "
        "minute can send the requests of a minute at once.",
    ),
]
ConcurrentRequests = Annotated[
    int | None,
    Field(
        ge=1,
        le=100_000,
        description="Maximum number of simultaneous requests to models, or null for no limit.",
    ),
]


class KeyUpdate(Config):
    """New limits of an API key. Omitted fields keep their values."""

    requests_per_minute: RequestsPerMinute = None
    concurrent_requests: ConcurrentRequests = None


class KeyCreate(KeyUpdate):
    """A new API key."""

    name: KeyName = Field(description="Purpose or owner of the key.")
    scopes: list[Scope] = Field(
        min_length=1, description="Allowed kinds of requests; `admin` allows all of them."
    )
    lock_service: bool = Field(
        False,
        description="Must be true for the first key: from then on every request needs a key. Ignored for "
        "the other keys.",
    )


class KeyView(BaseModel):
    """An API key without its secret."""

    model_config = ConfigDict(from_attributes=True)

    id: str = Field(description="Id of the key, `key_…`.")
    name: str = Field(description="Purpose or owner of the key.")
    hint: str = Field(description="First characters of the secret.")
    scopes: list[Scope] = Field(description="Allowed kinds of requests; `admin` allows all of them.")
    requests_per_minute: RequestsPerMinute
    concurrent_requests: ConcurrentRequests
    created_at: datetime = Field(description="Time of creation.")
    last_used_at: datetime | None = Field(description="Time of the last use, recorded at most once a minute.")
    revoked_at: datetime | None = Field(description="Time of revocation; null while the key is active.")


class KeySecretView(KeyView):
    """A new API key with its secret, which no other response contains."""

    key: str = Field(description="The secret, to be sent as `Authorization: Bearer ts_…`.")
    notice: str | None = Field(description="What the first key changes; null for the other keys.")


class CallerView(BaseModel):
    """The sender of the request."""

    key_id: str = Field(description="Id of the key; empty on a service without keys.")
    scopes: list[Scope] = Field(description="Allowed kinds of requests; `admin` allows all of them.")
    requests_per_minute: RequestsPerMinute
    concurrent_requests: ConcurrentRequests


def caller_view(caller: Caller) -> CallerView:
    """Convert a caller to its response."""
    return CallerView(
        key_id=caller.key_id,
        scopes=sorted(map(Scope, caller.scopes)),
        requests_per_minute=caller.requests_per_minute,
        concurrent_requests=caller.concurrent_requests,
    )
