"""A PostgreSQL role for each worker of another host, with the grants that a worker needs.

The control plane's role needs CREATEROLE for that; it need not be a superuser. Every statement may run twice.
"""

import logging
from collections.abc import Iterable, Iterator

from psycopg.errors import DependentObjectsStillExist
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlmodel import SQLModel

from app.storage.database import POOL_SIZE
from app.worker_credentials.rights.tables import DELETED_FROM, HIDDEN_COLUMNS, READ, WRITTEN

ROLE_PREFIX = "tunesmith_worker_"
# The pool of a worker, the connection of its check of the schema, the same of its successor, and a reserve.
MAX_CONNECTIONS = 2 * (POOL_SIZE + 1) + 2
ALEMBIC_TABLE = "alembic_version"
# Bounds of a session that sets no others, such as one that a person opens with a host's password.
SESSION_TIMEOUTS = {
    "lock_timeout": "20s",
    "idle_in_transaction_session_timeout": "15s",
    "statement_timeout": "120s",
}

logger = logging.getLogger(__name__)


def may_create_roles(connection: Connection) -> bool:
    """Return whether the control plane's own role may create others."""
    query = "SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user"
    return bool(connection.scalar(text(query)))


def create_role(connection: Connection, role: str, password: str) -> None:
    """Create the role, or set its password and grants again, within the connection's transaction.

    The server receives the hash of the password only, so that no log of statements contains it.
    """
    raw = connection.connection.dbapi_connection
    assert raw is not None, "the connection is open"
    verifier = raw.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
    exists = connection.scalar(text("SELECT true FROM pg_roles WHERE rolname = :role"), {"role": role})
    # A new role is neither a superuser nor may it create anything; only a superuser may state that again.
    verb, limit = "ALTER" if exists else "CREATE", f"CONNECTION LIMIT {MAX_CONNECTIONS}"
    _execute(connection, f"{verb} ROLE {_quote(role)} LOGIN {limit} PASSWORD '{verifier}'")
    for setting, timeout in SESSION_TIMEOUTS.items():
        _execute(connection, f"ALTER ROLE {_quote(role)} SET {setting} = '{timeout}'")
    grant_tables(connection, role)


def grant_tables(connection: Connection, role: str) -> None:
    """Grant a role what a worker of this version needs; what it had before is revoked."""
    schema = connection.scalar(text("SELECT current_schema()"))
    _execute(connection, f"REVOKE ALL ON ALL TABLES IN SCHEMA {_quote(schema)} FROM {_quote(role)}")
    for statement in _list_grants(_quote(role)):
        _execute(connection, statement)


def find_open_schema(connection: Connection, role: str) -> str | None:
    """Return the schema of the tables if the role may create functions in it, as anyone by default before 15.

    A function there with the name of a built-in one can run with the control plane's rights (CVE-2018-1058).
    """
    query = "SELECT current_schema() WHERE has_schema_privilege(:role, current_schema(), 'CREATE')"
    schema: str | None = connection.scalar(text(query), {"role": role})
    return schema


def explain_connections(connection: Connection, n_processes: int) -> str | None:
    """Return a warning if hosts and control plane may open more connections than the server accepts."""
    query = (
        "SELECT count(*), coalesce(sum(rolconnlimit), 0), current_setting('max_connections')::int, "
        "current_setting('superuser_reserved_connections')::int FROM pg_roles "
        "WHERE starts_with(rolname, :prefix) AND rolcanlogin AND rolconnlimit > 0"
    )
    n_roles, of_hosts, accepted, reserved = connection.execute(text(query), {"prefix": ROLE_PREFIX}).one()
    needed = of_hosts + n_processes * POOL_SIZE + reserved
    if needed <= accepted:
        return None
    hosts = f"{n_roles} joined host{'s' if n_roles != 1 else ''}"
    return (
        f"{hosts} and the control plane may open {needed} connections to PostgreSQL, which accepts "
        f"max_connections = {accepted}: beyond that, workers and the API wait. Set max_connections to "
        f"{needed} or more (POSTGRES_MAX_CONNECTIONS with docker compose), and restart PostgreSQL."
    )


def end_role(connection: Connection, role: str) -> None:
    """End a role's connections, and drop it; one that does not exist is left as it is.

    A role that owns objects in another database stays without rights, and cannot log in.

    The connection is in autocommit: no new connection may begin before the open ones are ended.
    """
    if not connection.scalar(text("SELECT true FROM pg_roles WHERE rolname = :role"), {"role": role}):
        return
    name = _quote(role)
    _execute(connection, f"ALTER ROLE {name} NOLOGIN")
    # A role without superuser ends and drops what belongs to a role of which it is a member.
    _execute(connection, f"GRANT {name} TO CURRENT_USER")
    terminate = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = :role"
    connection.execute(text(terminate), {"role": role}).all()
    _execute(connection, f"DROP OWNED BY {name}")
    try:
        _execute(connection, f"DROP ROLE {name}")
    except DBAPIError as error:
        # It may own objects in other databases of the server, which everyone may connect to by default.
        if not isinstance(error.orig, DependentObjectsStillExist):
            raise
        logger.warning("the role %s has no rights left, and stays: %s", role, error.orig)


def _list_grants(role: str) -> Iterator[str]:
    whole = [table for table in (*WRITTEN, *READ) if table not in HIDDEN_COLUMNS]
    yield f"GRANT SELECT ON {_join(whole)} TO {role}"
    yield f"GRANT INSERT ON {_join(WRITTEN)} TO {role}"
    for table in WRITTEN:
        # On the columns: LOCK TABLE, which would stop all others, needs the right on the table.
        updated = _join(column.name for column in SQLModel.metadata.tables[table].columns)
        yield f"GRANT UPDATE ({updated}) ON {_quote(table)} TO {role}"
    yield f"GRANT DELETE ON {_join(DELETED_FROM)} TO {role}"
    for table, hidden in HIDDEN_COLUMNS.items():
        columns = [column.name for column in SQLModel.metadata.tables[table].columns]
        yield f"GRANT SELECT ({_join(set(columns) - set(hidden))}) ON {_quote(table)} TO {role}"


def _join(names: Iterable[str]) -> str:
    return ", ".join(map(_quote, sorted(names)))


def _quote(name: str) -> str:
    """Return an identifier for SQL. Names are ours, or of the operator's schema."""
    return '"' + name.replace('"', '""') + '"'


def _execute(connection: Connection, statement: str) -> None:
    # The text has no parameters: a colon in it is not one.
    connection.exec_driver_sql(statement)
