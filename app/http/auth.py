"""Who may do what: API keys with scopes, and the rule for a service that has no key yet.

Without any live key the service is open, but only to this machine, even if the last key of a public service
is revoked.
"""

import hashlib
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import or_, select, update
from sqlmodel import Session, col

from app.http.errors import Forbidden, Unauthorized
from app.storage.database import database_now, read_session, transaction
from app.tables import ApiKey, Scope
from serving.http.addresses import is_local_request

USED_EVERY_SECONDS = 60
CREATE_KEY_HINT = "Create one with `python -m app keys create --name me --scope admin`."

bearer = HTTPBearer(auto_error=False, description="An API key, `ts_…`. Not needed while no key exists.")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]


@dataclass(frozen=True)
class Caller:
    """Who sent a request; without keys the id is empty and everything is allowed."""

    key_id: str
    scopes: frozenset[str]
    requests_per_minute: int | None = None
    concurrent_requests: int | None = None

    def require(self, scope: Scope) -> None:
        """Raises Forbidden when the caller lacks the scope."""
        if not self.scopes & {scope, Scope.admin}:
            raise Forbidden(
                f"This key has the scopes {', '.join(sorted(self.scopes))}, and this request needs {scope}.",
                hint="Use a key with that scope, or have one made by someone whose key has the scope admin.",
            )


_UNMARKED = or_(
    col(ApiKey.last_used_at).is_(None), col(ApiKey.last_used_at) < database_now(-USED_EVERY_SECONDS)
)
ANYONE = Caller("", frozenset({Scope.admin}))


def get_caller(request: Request, credentials: Credentials) -> Caller:
    """The caller of a request; raises Unauthorized without a valid key where one is needed."""
    client = request.client.host if request.client else ""
    return authenticate(
        credentials.credentials if credentials else None, request.headers.get("host", ""), client
    )


CallerDependency = Annotated[Caller, Depends(get_caller)]


def require_by_method(request: Request, caller: CallerDependency) -> None:
    """Reading needs `read`, every other method `write`."""
    caller.require(Scope.read if request.method in ("GET", "HEAD") else Scope.write)


def require_inference(caller: CallerDependency) -> None:
    """Raises Forbidden unless the caller may ask models, which is what a gateway does for others."""
    caller.require(Scope.inference)


def require_admin(caller: CallerDependency) -> None:
    """Raises Forbidden unless the caller may do everything."""
    caller.require(Scope.admin)


def authenticate(token: str | None, host: str, client: str) -> Caller:
    """The caller with this key; without a live key in the database, anyone on this machine."""
    with read_session() as session:
        found = _find(session, token) if token else None
        is_open = found is None and not has_active_key(session)
    if found is not None:
        key, unmarked = found
        if unmarked:
            _mark_used(key.id)
        return Caller(key.id, frozenset(key.scopes), key.requests_per_minute, key.concurrent_requests)
    if not is_open:
        what = "This API key is unknown or revoked." if token else "This service needs an API key."
        raise Unauthorized(what, hint="Send `Authorization: Bearer ts_…`. " + CREATE_KEY_HINT)
    if not is_local_request(host, client):
        raise Forbidden(
            f"No API key exists yet, so only this machine is served, under a loopback name; not {host!r}.",
            hint=CREATE_KEY_HINT,
        )
    return ANYONE


def has_active_key(session: Session) -> bool:
    """Whether the database holds a key that is not revoked."""
    return session.scalar(select(col(ApiKey.id)).where(col(ApiKey.revoked_at).is_(None)).limit(1)) is not None


def hash_key(key: str) -> str:
    """What is stored of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def _find(session: Session, token: str) -> tuple[ApiKey, bool] | None:
    """The live key, and whether its last use was noted too long ago."""
    statement = select(ApiKey, _UNMARKED).where(
        col(ApiKey.sha256) == hash_key(token), col(ApiKey.revoked_at).is_(None)
    )
    row = session.execute(statement).one_or_none()
    return (row[0], row[1]) if row is not None else None


def _mark_used(key_id: str) -> None:
    """Note the use, in a transaction of its own and at most once a minute: every request passes here."""
    with transaction() as session:
        statement = update(ApiKey).where(col(ApiKey.id) == key_id, _UNMARKED)
        session.execute(
            statement.values(last_used_at=database_now()).execution_options(synchronize_session=False)
        )
