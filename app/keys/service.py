"""Making, listing and revoking API keys."""

import secrets
from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy import select, update
from sqlmodel import Session, col

from app.http.auth import has_active_key, hash_key
from app.http.errors import Conflict, NotFound
from app.http.paging import PageQuery, paginate_newest_first
from app.storage.database import database_now
from app.tables import ApiKey, Scope
from trainers.runtime.error_codes import ErrorCode

HINT_CHARACTERS = 7


class FirstKeyMustBeAdmin(Conflict):
    """The first key closes the service, so it must be able to make the next."""

    code = ErrorCode.first_key_must_be_admin


class KeyNotFound(NotFound):
    """No API key has this id."""

    code = ErrorCode.key_not_found


def create(
    session: Session, name: str, scopes: Iterable[Scope], limits: Mapping[str, int | None] | None = None
) -> tuple[ApiKey, str]:
    """Make a key and answer it with its secret, of which only the hash is kept."""
    secret = f"ts_{secrets.token_urlsafe(32)}"
    key = ApiKey(
        name=name,
        sha256=hash_key(secret),
        hint=secret[:HINT_CHARACTERS],
        scopes=[*dict.fromkeys(map(str, scopes))],
    )
    _set(key, limits or {})
    session.add(key)
    session.flush()
    return key, secret


def create_over_http(
    session: Session, name: str, scopes: Sequence[Scope], limits: Mapping[str, int | None]
) -> tuple[ApiKey, str]:
    """Make a key; raises FirstKeyMustBeAdmin when it would lock everyone out of making another."""
    if Scope.admin not in scopes and not has_active_key(session):
        raise FirstKeyMustBeAdmin(
            "The first key needs the scope admin: from then on nobody could make another key here.",
            hint='Send `"scopes": ["admin"]` first, then make the others with that key.',
        )
    return create(session, name, scopes, limits)


def listed(session: Session, paging: PageQuery) -> tuple[Sequence[ApiKey], str | None]:
    """Keys from new to old, those revoked included."""
    return paginate_newest_first(session, select(ApiKey), col(ApiKey.id), paging)


def every(session: Session) -> Iterable[ApiKey]:
    """All keys from old to new."""
    return session.scalars(select(ApiKey).order_by(col(ApiKey.id)))


def revoke(session: Session, key_id: str) -> ApiKey:
    """Make a key useless at once; revoking it again changes nothing."""
    session.execute(
        update(ApiKey)
        .where(col(ApiKey.id) == key_id, col(ApiKey.revoked_at).is_(None))
        .values(revoked_at=database_now())
        .execution_options(synchronize_session=False)
    )
    return _get(session, key_id)


def limit(session: Session, key_id: str, limits: Mapping[str, int | None]) -> ApiKey:
    """Change those of `KeyLimits` that are given; gateways learn of it within seconds."""
    key = _get(session, key_id)
    _set(key, limits)
    return key


def _set(key: ApiKey, limits: Mapping[str, int | None]) -> None:
    for name, most in limits.items():
        setattr(key, name, most)


def _get(session: Session, key_id: str) -> ApiKey:
    key = session.get(ApiKey, key_id)
    if key is None:
        raise KeyNotFound(f"There is no API key {key_id}.", hint="List them with `GET /api/v1/keys`.")
    return key
