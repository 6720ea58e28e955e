"""Authentication by API keys, authorization by their scopes, and the rule for a service without keys.

A service without an active key serves requests from this machine only. The rule also holds when the last key
of a public service is revoked.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Self

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import bindparam, exists, or_, select, update
from sqlmodel import Session, col

from app.http.errors import Forbidden, Unauthorized
from app.scheduling.incidents import Incident
from app.storage.database import DATABASE_UNAVAILABLE, database_now, read_session, transaction
from app.tables import ApiKey, Host, HostStatus, Scope, WorkerCredential
from serving.http.addresses import is_forwarded, is_local_request

LAST_USED_INTERVAL_SECONDS = 60
LAST_USE_RETRY_SECONDS = 30
CREATE_KEY_HINT = "Create an API key with `python -m app keys create --name me --scope admin`."

bearer = HTTPBearer(auto_error=False, description="An API key, `ts_…`. Not required while no key exists.")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]


@dataclass(frozen=True)
class Caller:
    """The sender of a request; on a service without keys its id is empty and its scope is `admin`."""

    key_id: str
    scopes: frozenset[str]
    requests_per_minute: int | None = None
    concurrent_requests: int | None = None
    tokens_per_day: int | None = None
    models: tuple[str, ...] | None = None

    @classmethod
    def of(cls, key: ApiKey) -> Self:
        """Return the caller that presents a key."""
        return cls(
            key.id,
            frozenset(key.scopes),
            key.requests_per_minute,
            key.concurrent_requests,
            key.tokens_per_day,
            None if key.models is None else tuple(key.models),
        )

    def may(self, scope: Scope) -> bool:
        """Return whether the caller has the scope; `admin` contains all."""
        return not self.scopes.isdisjoint({scope, Scope.admin})

    def require(self, scope: Scope) -> None:
        """Raise Forbidden if the caller lacks the scope."""
        require_scope(self.scopes, scope)


def require_scope(scopes: Iterable[str], scope: Scope) -> None:
    """Raise Forbidden if the scopes of a key do not contain this one; `admin` contains all."""
    if not {scope, Scope.admin} & set(scopes):
        raise Forbidden(
            f"The request requires the scope {scope}; this API key has {', '.join(sorted(scopes))}.",
            hint="Use a key with that scope. An admin creates one with POST /api/v1/keys.",
        )


_LAST_USE_OUTDATED = or_(
    col(ApiKey.last_used_at).is_(None), col(ApiKey.last_used_at) < database_now(-LAST_USED_INTERVAL_SECONDS)
)
_LAST_USE_INCIDENT = Incident("recording the last use of keys")
ENDED_HOSTS = [status for status in HostStatus if status.finished]
# Every request executes one of these two: building one costs more than executing it.
_ANY_ACCESS = select(
    or_(
        exists().where(col(ApiKey.revoked_at).is_(None)),
        exists().where(col(WorkerCredential.ended_at).is_(None)),
        # Each query with an IN is written anew.
        exists().where(*(col(Host.status) != status for status in ENDED_HOSTS)),
    )
)
_ACTIVE_KEY = select(ApiKey, _LAST_USE_OUTDATED).where(
    col(ApiKey.sha256) == bindparam("sha256"), col(ApiKey.revoked_at).is_(None)
)
LOCAL_CALLER = Caller("", frozenset({Scope.admin}))


def get_caller(request: Request, credentials: Credentials) -> Caller:
    """Return the caller of a request; raise Unauthorized if it lacks a required key."""
    client = request.client.host if request.client else ""
    headers = dict(request.headers.raw)
    return authenticate(
        credentials.credentials if credentials else None,
        headers.get(b"host", b""),
        client,
        is_forwarded(headers),
    )


CallerDependency = Annotated[Caller, Depends(get_caller)]


async def require_by_method(request: Request, caller: CallerDependency) -> None:
    """Require the scope `read` for GET and HEAD, and `write` for every other method."""
    caller.require(Scope.read if request.method in ("GET", "HEAD") else Scope.write)


async def require_inference(caller: CallerDependency) -> None:
    """Require the scope `inference`, which a gateway has."""
    caller.require(Scope.inference)


async def require_worker(caller: CallerDependency) -> None:
    """Require the scope `worker`, which the key of a joined host has."""
    caller.require(Scope.worker)


async def require_admin(caller: CallerDependency) -> None:
    """Require the scope `admin`."""
    caller.require(Scope.admin)


def authenticate(token: str | None, host: bytes, client: str, forwarded: bool) -> Caller:
    """Return the caller with this key, or the local caller while the database has no active key.

    Raises:
        Unauthorized: The key is required and missing, unknown or revoked.
        Forbidden: No key exists, and the request comes from another machine or through a proxy, or names
            another host.
    """
    with read_session() as session:
        found = find_active_key(session, token) if token else None
        is_open = found is None and not _is_locked(session)
    if found is not None:
        key, outdated = found
        if outdated and _LAST_USE_INCIDENT.seconds_since_failure > LAST_USE_RETRY_SECONDS:
            _record_last_use(key.id)
        return Caller.of(key)
    if not is_open:
        message = "The API key is unknown or revoked." if token else "The request has no API key."
        raise Unauthorized(message, hint="Send `Authorization: Bearer ts_…`. " + CREATE_KEY_HINT)
    if not is_local_request(host, client, forwarded):
        raise Forbidden(
            "No API key exists yet, so the service accepts requests from this machine only, with a loopback "
            f"host name and not through a proxy; this request names {host.decode('latin-1')!r}.",
            hint=CREATE_KEY_HINT,
        )
    return LOCAL_CALLER


def has_active_key(session: Session) -> bool:
    """Return whether the database has a key that is not revoked."""
    return session.scalar(select(col(ApiKey.id)).where(col(ApiKey.revoked_at).is_(None)).limit(1)) is not None


def _is_locked(session: Session) -> bool:
    """Return whether requests need a key: one is active, or a host may still reach this service.

    Its tunnel may end on the loopback of this machine, and a host whose key was the last one must not become
    an admin by its revocation.
    """
    return bool(session.connection().scalar(_ANY_ACCESS))


def hash_key(key: str) -> str:
    """Return the SHA-256 of a key, which is stored instead of the key."""
    return hashlib.sha256(key.encode()).hexdigest()


def find_active_key(session: Session, token: str) -> tuple[ApiKey, bool] | None:
    """Return the active key, and whether its recorded last use is outdated."""
    row = session.execute(_ACTIVE_KEY, {"sha256": hash_key(token)}).one_or_none()
    return (row[0], row[1]) if row is not None else None


def _record_last_use(key_id: str) -> None:
    """Record the use in its own transaction, at most once a minute, since every request comes here."""
    statement = update(ApiKey).where(col(ApiKey.id) == key_id, _LAST_USE_OUTDATED)
    statement = statement.values(last_used_at=database_now()).execution_options(synchronize_session=False)
    try:
        with transaction() as session:
            session.execute(statement)
    except DATABASE_UNAVAILABLE as error:
        # A database that is locked or full can still be read: the request does not depend on this write.
        _LAST_USE_INCIDENT.record(error)
    else:
        _LAST_USE_INCIDENT.resolve()
