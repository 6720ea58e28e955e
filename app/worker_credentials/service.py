"""Creation, listing and revocation of workers' credentials."""

import secrets
from collections.abc import Sequence
from urllib.parse import quote, urlsplit, urlunsplit

from pydantic import SecretStr
from sqlalchemy import ColumnElement, func, select, update
from sqlmodel import Session, col

from app.hosts.offers import HostsNeedKeys
from app.http.auth import CREATE_KEY_HINT, Caller
from app.http.errors import Conflict, Forbidden, NotFound
from app.http.paging import PageQuery, paginate_newest_first
from app.scheduling.version import explain_mismatch, own_version
from app.settings import Settings
from app.storage import migrate
from app.storage.database import database_now, get_engine, transaction
from app.tables import Scope, StorageState, WorkerCredential
from app.worker_credentials.rights import postgresql_role, redis_user
from app.worker_credentials.schemas import (
    WorkerCredentialCreate,
    WorkerCredentialSecretView,
    WorkerCredentialView,
)
from app.worker_credentials.shared_settings import list_shared_values
from trainers.runtime.error_codes import ErrorCode

ROLE_CHARACTERS = 12
SHARED_DATABASE = (
    "The worker shares the control plane's PostgreSQL role, which may not create others: a host that leaves "
    "keeps access until that password is changed. `ALTER ROLE … CREATEROLE` changes it."
)
OPEN_SCHEMA = (
    "Every role, also the worker's, may create functions in the schema {schema}, which can then run with the "
    "control plane's rights. Run as a superuser in this database: REVOKE CREATE ON SCHEMA {schema} FROM "
    "PUBLIC;"
)
SHARED_BROKER = (
    "The worker shares the control plane's Redis user, which may not create others ({reason}): a host that "
    "leaves keeps access until that password is changed."
)


class HostNeedsServers(Conflict):
    """The database or the queue is embedded, so that another host cannot reach it."""

    code = ErrorCode.host_needs_servers


class WorkerVersionMismatch(Conflict):
    """The host has another version than the control plane."""

    code = ErrorCode.worker_version_mismatch


class WorkerKeyNeeded(Forbidden):
    """The key has more scopes than a host needs, which would store it."""

    code = ErrorCode.worker_key_needed


class TooManyJoinedHosts(Conflict):
    """As many hosts have joined as a setting allows."""

    code = ErrorCode.too_many_joined_hosts


class CredentialNotFound(NotFound):
    """No credentials have this id, or they belong to another key."""

    code = ErrorCode.credential_not_found


def join_host(settings: Settings, caller: Caller, body: WorkerCredentialCreate) -> WorkerCredentialSecretView:
    """Create the credentials of a host; the same key and name get new passwords for those that they have.

    The role is created in the transaction of the row. The user of Redis follows after the commit; the
    reconciler sets it again if the process ends in between.

    Raises:
        HostsNeedKeys: The caller has no key, so that nothing would tell the host from an admin.
        HostNeedsServers: The control plane uses SQLite, or the queue in its data directory.
        WorkerKeyNeeded: The key has further scopes.
        WorkerVersionMismatch: The host has another version than the control plane.
        TooManyJoinedHosts: The key, or the service, has as many hosts as a setting allows.
    """
    _check_servers(settings)
    if not caller.key_id:
        raise HostsNeedKeys(
            "A host joins with an API key of the scope worker, and this service has no key.",
            hint=CREATE_KEY_HINT + " Then create one with `--scope worker` for the host.",
        )
    if caller.scopes != {Scope.worker}:
        raise WorkerKeyNeeded(
            f"The API key has the scopes {', '.join(sorted(caller.scopes))}. A host stores its key, which "
            "must have the scope worker alone.",
            hint='Create one for the host: POST /api/v1/keys with {"name": "HOST", "scopes": ["worker"]}, or '
            "on the control host `python -m app keys create --name HOST --scope worker`.",
        )
    _check_version(body)
    password, broker_password = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    open_schema = connections = None
    with transaction() as session:
        credential = _create_row(session, settings, caller.key_id, body)
        if credential.database_role is not None:
            postgresql_role.create_role(session.connection(), credential.database_role, password)
            open_schema = postgresql_role.find_open_schema(session.connection(), credential.database_role)
            connections = postgresql_role.explain_connections(session.connection(), settings.processes)
        credential.broker_password_sha256 = redis_user.hash_password(broker_password)
    refusal = set_active_user(credential.id)
    if refusal is not None:
        credential.broker_user = credential.broker_password_sha256 = None
    database_url = move_url(settings.database_url, settings.worker_database_url)
    broker_url = move_url(settings.broker_url, settings.worker_broker_url)
    if credential.database_role is not None:
        database_url = replace_user(database_url, credential.database_role, password)
    if credential.broker_user is not None:
        broker_url = replace_user(broker_url, credential.broker_user, broker_password)
    return WorkerCredentialSecretView(
        **WorkerCredentialView.model_validate(credential).model_dump(),
        database_url=database_url,
        broker_url=broker_url,
        artifacts_url=settings.worker_artifacts_url or _shared_store(settings.artifacts_url),
        control_version=own_version(),
        settings=list_shared_values(settings),
        notices=[
            *([SHARED_DATABASE] if credential.database_role is None else []),
            *([OPEN_SCHEMA.format(schema=open_schema)] if open_schema is not None else []),
            *([SHARED_BROKER.format(reason=refusal)] if refusal is not None else []),
            *([connections] if connections is not None else []),
        ],
    )


def list_credentials(session: Session, paging: PageQuery) -> tuple[Sequence[WorkerCredential], str | None]:
    """Return a page of credentials, newest first, including revoked ones."""
    return paginate_newest_first(session, select(WorkerCredential), col(WorkerCredential.id), paging)


def revoke_credential(session: Session, caller: Caller, credential_id: str) -> WorkerCredential:
    """Revoke credentials; revoked ones stay as they are. The reconciler ends their connections.

    A key without the scope `admin` finds its own only; otherwise raises CredentialNotFound.
    """
    credential = session.get(WorkerCredential, credential_id)
    is_own = credential is not None and credential.key_id == caller.key_id
    if credential is None or not (is_own or Scope.admin in caller.scopes):
        raise CredentialNotFound(
            f"There are no credentials {credential_id!r} of this key.",
            hint="An admin lists all of them: GET /api/v1/worker-credentials.",
        )
    revoke_where(session, col(WorkerCredential.id) == credential_id)
    session.refresh(credential)
    return credential


def revoke_where(session: Session, condition: ColumnElement[bool]) -> None:
    """Revoke the credentials that the condition selects."""
    statement = update(WorkerCredential).where(condition, col(WorkerCredential.revoked_at).is_(None))
    session.execute(statement.values(revoked_at=database_now()).execution_options(synchronize_session=False))


def set_active_user(credential_id: str) -> str | None:
    """Set the user of Redis; return why the server does not allow it, and record that it is shared.

    The lock of the row orders this before a revocation: what has ended is not set again.
    """
    with transaction() as session:
        credential = session.get(WorkerCredential, credential_id, with_for_update=True)
        if credential is None or credential.revoked_at is not None:
            return None
        user, password_sha256 = credential.broker_user, credential.broker_password_sha256
        if user is None or password_sha256 is None:
            return None
        refusal = redis_user.set_user(user, password_sha256)
        if refusal is not None:
            credential.broker_user = credential.broker_password_sha256 = None
    return refusal


def move_url(url: SecretStr, moved: SecretStr) -> str:
    """Return the second URL, with the user and password of the first unless it has its own; or the first."""
    if not moved.get_secret_value():
        return url.get_secret_value()
    parts, own = urlsplit(moved.get_secret_value()), urlsplit(url.get_secret_value())
    user, at, _ = own.netloc.rpartition("@")
    return urlunsplit(parts if "@" in parts.netloc else parts._replace(netloc=f"{user}{at}{parts.netloc}"))


def replace_user(url: str, user: str, password: str) -> str:
    """Return a URL with another user and password."""
    parts = urlsplit(url)
    location = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{quote(user)}:{quote(password)}@{location}"))


def _shared_store(url: str) -> str:
    """Return the URL of a store that other hosts reach, or an empty one for a folder of this host."""
    return "" if url.startswith(("file:", "/")) else url


def _check_servers(settings: Settings) -> None:
    embedded = []
    if get_engine().dialect.name != "postgresql":
        embedded.append("the database SQLite")
    if not settings.broker_url.get_secret_value().startswith(("redis", "valkey")):
        embedded.append("a queue in its data directory")
    if embedded:
        raise HostNeedsServers(
            f"The control plane uses {' and '.join(embedded)}, which another host cannot reach.",
            hint="Start PostgreSQL and Redis, for example with `docker compose up -d`, stop the service, "
            "move its data with `python -m app move --to postgresql://…`, and set TUNESMITH_DATABASE_URL and "
            "TUNESMITH_BROKER_URL.",
        )


def _check_version(body: WorkerCredentialCreate) -> None:
    current, _ = migrate.get_revisions(get_engine())
    mismatch = explain_mismatch(body.version, body.revision, own_version(), str(current))
    if mismatch is not None:
        message, _, hint = mismatch.partition(" Update the host: ")
        raise WorkerVersionMismatch(message, hint=f"Update the host: {hint}")


def _create_row(
    session: Session, settings: Settings, key_id: str, body: WorkerCredentialCreate
) -> WorkerCredential:
    """Return the active credentials of this key and name, locked, or new ones."""
    statement = select(WorkerCredential).where(
        col(WorkerCredential.key_id) == key_id,
        col(WorkerCredential.name) == body.name,
        col(WorkerCredential.revoked_at).is_(None),
    )
    credential = session.scalars(statement.with_for_update()).one_or_none()
    if credential is None:
        _check_number(session, settings, key_id)
        credential = WorkerCredential(key_id=key_id, name=body.name, version=body.version)
        session.add(credential)
    suffix = credential.id[-ROLE_CHARACTERS:]
    if postgresql_role.may_create_roles(session.connection()):
        credential.database_role = f"{postgresql_role.ROLE_PREFIX}{suffix}"
    credential.broker_user = f"{postgresql_role.ROLE_PREFIX}{suffix}"
    credential.version = body.version
    credential.updated_at = session.scalar(select(database_now())) or credential.updated_at
    session.flush()
    return credential


def _check_number(session: Session, settings: Settings, key_id: str) -> None:
    """Raise TooManyJoinedHosts if no other host may join; revoked credentials count until they have ended."""
    # Hosts that join at the same time wait for each other. A host's own role cannot lock this row.
    session.scalars(select(StorageState).with_for_update()).one_or_none()
    counted = select(func.count()).where(col(WorkerCredential.ended_at).is_(None))
    of_key = session.scalar(counted.where(col(WorkerCredential.key_id) == key_id)) or 0
    if of_key >= settings.max_joined_hosts_per_key:
        raise TooManyJoinedHosts(
            f"{of_key} hosts have joined with this API key, of at most {settings.max_joined_hosts_per_key}.",
            hint="Create a key for each host: POST /api/v1/keys with the scope worker. Otherwise let a host "
            "leave, or raise TUNESMITH_MAX_JOINED_HOSTS_PER_KEY for the API.",
        )
    in_all = session.scalar(counted) or 0
    if in_all >= settings.max_joined_hosts:
        raise TooManyJoinedHosts(
            f"{in_all} hosts have joined, of at most {settings.max_joined_hosts}.",
            hint="Let a host leave (`python -m workers leave`, or DELETE /api/v1/worker-credentials/{id}), "
            "or raise TUNESMITH_MAX_JOINED_HOSTS for the API.",
        )
