"""What the key endpoints take and give."""

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from app.tables import Scope
from trainers.configs.base import PRINTABLE_PATTERN

KeyName = Annotated[
    str, StringConstraints(min_length=1, max_length=100, strip_whitespace=True, pattern=PRINTABLE_PATTERN)
]


class KeyLimits(BaseModel):
    """What a key may ask of models; null is no limit."""

    model_config = ConfigDict(extra="forbid")

    requests_per_minute: int | None = Field(
        None, ge=1, le=1_000_000, description="A key that has rested may send a minute's requests at once."
    )
    concurrent_requests: int | None = Field(
        None, ge=1, le=100_000, description="Requests that may be under way together, streams included."
    )


class KeyCreate(KeyLimits):
    """A key to be made."""

    name: KeyName = Field(description="What the key is for.")
    scopes: list[Scope] = Field(min_length=1, description="What it allows; `admin` allows everything.")


class KeyView(BaseModel):
    """A key without its secret."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    name: str
    hint: str = Field(description="The key's first characters.")
    scopes: list[Scope]
    requests_per_minute: int | None
    concurrent_requests: int | None
    created_at: datetime
    last_used_at: datetime | None = Field(description="Noted at most once a minute.")
    revoked_at: datetime | None


class KeySecretView(KeyView):
    """A key with its secret, which is shown this once."""

    key: str


class CallerView(BaseModel):
    """Whoever asks."""

    key_id: str = Field(description="Empty while the service has no key and serves this machine alone.")
    scopes: list[Scope]
    requests_per_minute: int | None
    concurrent_requests: int | None
