"""Requests and responses of the endpoints of API keys."""

from datetime import date, datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from app.http.auth import Caller
from app.routing_table.schemas import GatewayId
from app.tables import ApiKey, Scope
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


TokensPerDay = Annotated[
    int | None,
    Field(
        ge=1,
        le=10**12,
        description="Maximum number of tokens of prompts and completions on a day in UTC, over all gateways; "
        "null means no limit. Requests in progress end. Jobs, evals and graders count as well.",
    ),
]
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=500, pattern=PRINTABLE_PATTERN)]
MODELS_TEXT = (
    "Names of the models that the key may use; one that ends with `*` stands for all names that begin so, "
    "and `ENDPOINT/MODEL` for a model of an endpoint in the settings. They hold for jobs, evals, graders and "
    "aliases as well. Null means all models."
)
AllowedModels = Annotated[list[ModelName] | None, Field(max_length=1000, description=MODELS_TEXT)]
# Of stored keys: an older one may have names that a request may not have any more.
StoredModels = Annotated[list[str] | None, Field(description=MODELS_TEXT)]
TokensToday = Annotated[int, Field(description="Tokens that the key has used today, in UTC.")]


class KeyUpdate(Config):
    """New limits of an API key. Omitted fields keep their values."""

    requests_per_minute: RequestsPerMinute = None
    concurrent_requests: ConcurrentRequests = None
    tokens_per_day: TokensPerDay = None
    models: AllowedModels = None


class KeyCreate(KeyUpdate):
    """A new API key."""

    name: KeyName = Field(description="Purpose or owner of the key.")
    scopes: list[Scope] = Field(
        min_length=1,
        description="Allowed kinds of requests. `worker` is for a host that joins, and allows nothing else; "
        "`admin` allows all of them.",
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
    tokens_per_day: TokensPerDay
    tokens_today: TokensToday = 0
    models: StoredModels
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
    tokens_per_day: TokensPerDay
    tokens_today: TokensToday
    models: StoredModels


# JSON numbers are exact to here.
MAX_TOKENS = 2**53


class TokenUseItem(Config):
    """The tokens of a key on one day."""

    key_id: str = Field(min_length=1, max_length=64, description="Id of the key.")
    day: date = Field(description="Day in UTC, such as `2026-01-31`.")
    tokens: int = Field(ge=0, le=MAX_TOKENS, description="Tokens since the gateway process started.")


class TokenUseCreate(Config):
    """What one gateway process has counted since it started; each report replaces the one before it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"reporter": "gateway_000000000000000000000000", "items": []}],
        }
    )

    reporter: GatewayId = Field(description="Id of the gateway process.")
    items: list[TokenUseItem] = Field(max_length=200, description="The counts; unknown keys are ignored.")


class TokenUseTotal(BaseModel):
    """The tokens of a key today, over all gateways."""

    key_id: str = Field(description="Id of the key.")
    tokens: int = Field(description="Tokens that it has used today, in UTC.")


class TokenUseView(BaseModel):
    """The totals of the reported keys."""

    items: list[TokenUseTotal] = Field(description="Totals of the keys that have used tokens today.")


def key_view(key: ApiKey, tokens_today: int) -> KeyView:
    """Return the response for a key."""
    return KeyView.model_validate(key.model_dump() | {"tokens_today": tokens_today})


def caller_view(caller: Caller, tokens_today: int) -> CallerView:
    """Convert a caller to its response."""
    return CallerView(
        key_id=caller.key_id,
        scopes=sorted(map(Scope, caller.scopes)),
        requests_per_minute=caller.requests_per_minute,
        concurrent_requests=caller.concurrent_requests,
        tokens_per_day=caller.tokens_per_day,
        tokens_today=tokens_today,
        models=None if caller.models is None else list(caller.models),
    )
