"""What the key endpoints take and give."""

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from app.tables import Scope
from trainers.configs.base import PRINTABLE

KeyName = Annotated[
    str, StringConstraints(min_length=1, max_length=100, strip_whitespace=True, pattern=PRINTABLE)
]


class NewKey(BaseModel):
    """A key to be made."""

    model_config = ConfigDict(extra="forbid")

    name: KeyName = Field(description="What the key is for.")
    scopes: list[Scope] = Field(min_length=1, description="What it allows; `admin` allows everything.")


class KeyView(BaseModel):
    """A key without its secret."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    name: str
    hint: str = Field(description="The key's first characters.")
    scopes: list[Scope]
    created_at: datetime
    last_used_at: datetime | None = Field(description="Noted at most once a minute.")
    revoked_at: datetime | None


class CreatedKey(KeyView):
    """A key with its secret, which is shown this once."""

    key: str
