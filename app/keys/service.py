"""Creation, listing, limits and revocation of API keys."""

import secrets
from collections.abc import Iterable, Sequence

from sqlalchemy import select, update
from sqlmodel import Session, col

from app.http.auth import has_active_key, hash_key
from app.http.errors import Conflict, NotFound
from app.http.paging import PageQuery, paginate_newest_first
from app.keys.schemas import KeyCreate, KeyUpdate, KeyView, key_view
from app.keys.token_use import count_tokens_today
from app.storage.database import database_now
from app.tables import ApiKey, Scope, WorkerCredential
from trainers.runtime.error_codes import ErrorCode

HINT_CHARACTERS = 7
FIRST_KEY_NOTICE = (
    "The service is locked from now on: every request needs a key as `Authorization: Bearer ts_…`. Store "
    "this one; it is not shown again. In /docs, click Authorize and paste it."
)


def create_key(session: Session, body: KeyCreate) -> tuple[ApiKey, str]:
    """Create a key; return it with its secret, of which only the hash is stored."""
    secret = f"ts_{secrets.token_urlsafe(32)}"
    key = ApiKey(
        name=body.name,
        sha256=hash_key(secret),
        hint=secret[:HINT_CHARACTERS],
        scopes=[*dict.fromkeys(map(str, body.scopes))],
        requests_per_minute=body.requests_per_minute,
        concurrent_requests=body.concurrent_requests,
        tokens_per_day=body.tokens_per_day,
        models=body.models,
    )
    session.add(key)
    session.flush()
    return key, secret


class FirstKeyMustBeAdmin(Conflict):
    """The first key of the service lacks the scope `admin`, without which no other key can be created."""

    code = ErrorCode.first_key_must_be_admin


class FirstKeyNotConfirmed(Conflict):
    """The request would lock the service, and does not confirm that."""

    code = ErrorCode.first_key_not_confirmed


def create_key_over_http(session: Session, body: KeyCreate) -> tuple[ApiKey, str, str | None]:
    """Create a key; return it with its secret, and with a notice if it is the first one.

    Raises:
        FirstKeyMustBeAdmin: No key could be created over HTTP after this one.
        FirstKeyNotConfirmed: The request does not confirm that the first key locks the service.
    """
    if has_active_key(session):
        return *create_key(session, body), None
    if Scope.admin not in body.scopes:
        raise FirstKeyMustBeAdmin(
            f"The first API key must have the scope admin, not only {', '.join(body.scopes)}: once a key "
            "exists, only an admin can create another.",
            hint='Create a key with `"scopes": ["admin"]` first, then the other keys with it.',
        )
    if not body.lock_service:
        raise FirstKeyNotConfirmed(
            "This would be the first API key, and would lock the service: from then on every request needs a "
            "key, also in these pages.",
            hint='Send `"lock_service": true` to confirm it, or create the key on the command line: '
            "`python -m app keys create --name me --scope admin`.",
        )
    return *create_key(session, body), FIRST_KEY_NOTICE


def list_keys(session: Session, paging: PageQuery) -> tuple[Sequence[ApiKey], str | None]:
    """Return a page of keys, newest first, including revoked ones."""
    return paginate_newest_first(session, select(ApiKey), col(ApiKey.id), paging)


def view_keys(session: Session, keys: Sequence[ApiKey]) -> list[KeyView]:
    """Return the responses for keys, with the tokens that each has used today."""
    tokens = count_tokens_today(session, [key.id for key in keys])
    return [key_view(key, tokens.get(key.id, 0)) for key in keys]


def list_all_keys(session: Session) -> Iterable[ApiKey]:
    """Return all keys, oldest first."""
    return session.scalars(select(ApiKey).order_by(col(ApiKey.id)))


def revoke_key(session: Session, key_id: str) -> ApiKey:
    """Revoke a key; a revoked key stays as it is. Raise KeyNotFound if there is no such key."""
    for table, column in ((ApiKey, ApiKey.id), (WorkerCredential, WorkerCredential.key_id)):
        # Hosts that have joined with the key leave with it; the reconciler ends their connections.
        session.execute(
            update(table)
            .where(col(column) == key_id, col(table.revoked_at).is_(None))
            .values(revoked_at=database_now())
            .execution_options(synchronize_session=False)
        )
    return get_key(session, key_id)


def delete_key(session: Session, key: ApiKey) -> None:
    """Delete the row of a revoked key; the jobs that it created keep its id."""
    assert key.revoked_at is not None, "a key is revoked before its row is deleted"
    session.delete(key)


def update_key(session: Session, key_id: str, body: KeyUpdate) -> ApiKey:
    """Change the limits that the body contains. Raise KeyNotFound if there is no such key."""
    key = get_key(session, key_id)
    for name, limit in body.model_dump(exclude_unset=True).items():
        setattr(key, name, limit)
    return key


class KeyNotFound(NotFound):
    """No API key has this id."""

    code = ErrorCode.key_not_found


def get_key(session: Session, key_id: str) -> ApiKey:
    """Return a key; raise KeyNotFound if there is none with this id."""
    key = session.get(ApiKey, key_id)
    if key is None:
        raise KeyNotFound(f"There is no API key {key_id!r}.", hint="List the keys: GET /api/v1/keys.")
    return key
