"""Sessions of the pages: a browser logs in with an API key and presents a cookie from then on.

A session has the scopes that its key has now, and ends with it: the key is read with each request.
"""

import secrets
from datetime import timedelta
from typing import NamedTuple

from sqlalchemy import delete, or_, select
from sqlmodel import Session, col

from app.http.auth import Caller, find_active_key, hash_key
from app.http.errors import Forbidden, Unauthorized
from app.storage.database import database_now, transaction
from app.tables import ApiKey, Scope, WebSession
from app.tables.base import utc_now

# A session that nobody uses ends after the first time, every session after the second.
IDLE = timedelta(days=7)
MAX_AGE = timedelta(days=30)
SEEN_INTERVAL_SECONDS = 300
# Of each key; the oldest ends when another one begins.
MAX_SESSIONS = 50


class FoundSession(NamedTuple):
    """The caller of a session, the name of its key, and whether the use of the session must be recorded."""

    caller: Caller
    key_name: str
    is_outdated: bool


class KeyUnusable(Unauthorized):
    """The key of a login is unknown or revoked."""


def log_in(secret: str) -> str:
    """Create a session for an API key and return its token, of which only the hash is stored.

    Raises:
        KeyUnusable: The key is unknown or revoked.
        Forbidden: The key has no scope for the pages.
    """
    token = secrets.token_urlsafe(32)
    with transaction() as session:
        found = find_active_key(session, secret)
        if found is None:
            raise KeyUnusable("The API key is unknown or revoked.", hint="Check it, or ask an admin for one.")
        key, _ = found
        if not Caller.of(key).may(Scope.read):
            raise Forbidden(
                f"The pages require the scope read; this API key has {', '.join(sorted(key.scopes))}.",
                hint="Log in with another key.",
            )
        session.add(
            WebSession(
                sha256=hash_key(token), key_id=key.id, last_seen_at=utc_now(), expires_at=utc_now() + IDLE
            )
        )
        session.flush()
        _end_surplus(session, key.id)
    return token


def find_session(session: Session, token: str) -> FoundSession | None:
    """Return the session with this token; None if it has ended, or if its key was revoked."""
    outdated = or_(
        col(WebSession.last_seen_at).is_(None),
        col(WebSession.last_seen_at) < database_now(-SEEN_INTERVAL_SECONDS),
    )
    statement = (
        select(ApiKey, outdated)
        .join(WebSession, col(WebSession.key_id) == col(ApiKey.id))
        .where(
            col(WebSession.sha256) == hash_key(token),
            col(WebSession.expires_at) > database_now(),
            col(ApiKey.revoked_at).is_(None),
        )
    )
    row = session.execute(statement).one_or_none()
    return None if row is None else FoundSession(Caller.of(row[0]), row[0].name, bool(row[1]))


def record_use(token: str) -> None:
    """Record that a session is in use, which extends it up to its greatest age."""
    with transaction() as session:
        of_token = select(WebSession).where(col(WebSession.sha256) == hash_key(token))
        if (found := session.scalars(of_token).one_or_none()) is not None:
            found.last_seen_at = utc_now()
            found.expires_at = min(found.created_at + MAX_AGE, utc_now() + IDLE)


def log_out(token: str) -> None:
    """End a session; ending it again changes nothing."""
    with transaction() as session:
        session.execute(delete(WebSession).where(col(WebSession.sha256) == hash_key(token)))


def _end_surplus(session: Session, key_id: str) -> None:
    """End the oldest sessions of a key that has too many."""
    of_key = select(col(WebSession.id)).where(col(WebSession.key_id) == key_id)
    surplus = session.scalars(of_key.order_by(col(WebSession.id).desc()).offset(MAX_SESSIONS)).all()
    session.execute(delete(WebSession).where(col(WebSession.id).in_(surplus)))
