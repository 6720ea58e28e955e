"""Sessions, and the database's clock."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache, lru_cache, partial
from typing import Annotated, Any

from fastapi import Depends
from sqlalchemy import (
    DateTime,
    Dialect,
    Engine,
    Float,
    Insert,
    String,
    create_engine,
    event,
    insert,
    inspect,
    literal,
    text,
)
from sqlalchemy.exc import DisconnectionError, InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import FunctionElement
from sqlalchemy.types import TypeDecorator
from sqlmodel import Session, SQLModel

from app.once import Once
from app.settings import get_settings
from app.storage import sqlite

# A client waits for a connection and for a lock for seconds, and then gets 503.
POOL_TIMEOUT_SECONDS = 5
# More writers at once only compete for the processor and for rows, and finish in an order of chance. A
# connection beyond the pool would be opened for one transaction, which costs more than the transaction.
POOL_SIZE = 10
# A connection that was used within this time is not checked again: a check costs as much as a statement.
CHECK_AFTER_IDLE_SECONDS = 1.0
# A server that is away, restarting or out of connections; a file that is locked or cannot be written.
# PostgreSQL reports a session that it ended for being idle in a transaction as an internal error.
DATABASE_UNAVAILABLE = (OperationalError, InterfaceError, InternalError, PoolTimeout)
POSTGRESQL_OPTIONS = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    # A process that is suspended in a transaction must not keep its rows locked for the process that
    # takes over, and nobody waits for a lock that another one keeps for longer: the request gets 503.
    "options": "-c idle_in_transaction_session_timeout=15s -c lock_timeout=20s",
}

Rows = Mapping[type[SQLModel], Sequence[Mapping[str, Any]]]


@Once
def get_engine() -> Engine:
    """Return the process's connection pool."""
    settings = get_settings()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    return create_database_engine(settings.database_url.get_secret_value())


def create_database_engine(url: str) -> Engine:
    """Create an engine for SQLite or PostgreSQL with the behavior that the service relies on."""
    if url.startswith("postgresql://"):
        url = url.replace("postgresql://", "postgresql+psycopg://", 1)
    # A server that disappears without closing its connections is noticed in seconds: leases depend on it.
    options: dict[str, Any] = POSTGRESQL_OPTIONS if url.startswith("postgresql") else {}
    if url.startswith("sqlite"):
        options = {"factory": sqlite.TurnConnection}
    engine = create_engine(
        url,
        pool_timeout=POOL_TIMEOUT_SECONDS,
        pool_size=POOL_SIZE,
        max_overflow=0,
        json_serializer=_dump_json,
        connect_args=options,
    )
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", sqlite.prepare_connection)
        event.listen(engine, "begin", sqlite.begin_transaction)
        event.listen(engine, "handle_error", sqlite.classify_damage, retval=True)
    else:
        event.listen(engine, "checkin", _record_use)
        event.listen(engine, "checkout", partial(_check_idle_connection, engine.dialect))
    return engine


@contextmanager
def transaction() -> Iterator[Session]:
    """Yield a session that commits when the block ends and rolls back when it raises."""
    with Session(get_engine(), expire_on_commit=False) as session, session.begin():
        yield session


@contextmanager
def read_session(*, streaming: bool = False) -> Iterator[Session]:
    """Yield a read-only session: without a write lock on SQLite, without a transaction on PostgreSQL.

    There, each statement sees what is committed when it begins, with a transaction or without. `streaming`
    opens one nevertheless: the cursor of a statement whose rows are fetched in parts needs it.
    """
    with Session(_reading_engine(get_engine(), streaming), expire_on_commit=False) as session:
        yield session


@lru_cache(maxsize=2)
def _reading_engine(engine: Engine, streaming: bool) -> Engine:
    """Return the engine with the options of `read_session`; setting them costs as much as a statement."""
    reading = engine.execution_options(read_only=True)
    if engine.dialect.name == "postgresql" and not streaming:
        reading = reading.execution_options(isolation_level="AUTOCOMMIT")
    return reading


def insert_rows(session: Session, table: type[SQLModel], rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows without objects in the session: a third of the work, where nobody changes them later."""
    session.connection().execute(_insert_into(table), rows)


@cache
def _insert_into(table: type[SQLModel]) -> Insert:
    return insert(inspect(table).local_table)


def lock_name(session: Session, name: str) -> None:
    """Lock a name that two tables share until the transaction ends.

    SQLite needs no lock: it runs one writing transaction at a time.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": name})


def get_write_session() -> Iterator[Session]:
    """Yield one transaction per request, committed before the response is sent."""
    with transaction() as session:
        yield session


def get_read_session() -> Iterator[Session]:
    """Yield one read-only session per request."""
    with read_session() as session:
        yield session


# With FastAPI's default scope the commit would run after the response is sent, and a client would
# get 201 for a commit that then fails.
WriteSession = Annotated[Session, Depends(get_write_session, scope="function")]
ReadSession = Annotated[Session, Depends(get_read_session, scope="function")]


class UTCDateTime(TypeDecorator[datetime]):
    """Aware UTC datetimes, also on SQLite, which stores no time zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        assert value.tzinfo is not None, "times are aware"
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class database_now(FunctionElement[datetime]):  # noqa: N801 — reads as SQL's now()
    """The database's clock plus an offset in seconds, since the clocks of hosts may differ.

    On PostgreSQL it is `clock_timestamp()`, not `now()`, which is constant within a transaction.
    """

    type = UTCDateTime()
    # The offset is a parameter: without it in the text, SQLAlchemy compiles each statement only once.
    inherit_cache = True

    def __init__(self, plus_seconds: float = 0) -> None:
        super().__init__(literal(float(plus_seconds), Float()))


@compiles(database_now, "postgresql")
def _postgresql_now(element: database_now, compiler: SQLCompiler, **options: Any) -> str:
    seconds = compiler.process(element.clause_expr, **options)
    return f"(clock_timestamp() + {seconds} * interval '1 second')"


@compiles(database_now, "sqlite")
def _sqlite_now(element: database_now, compiler: SQLCompiler, **options: Any) -> str:
    seconds = compiler.process(element.clause_expr, **options)
    # The three zeros complete the six digits that SQLAlchemy writes, so that text compares like time.
    return f"(strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', {seconds})) || '000')"


class json_text(FunctionElement[str]):  # noqa: N801 — as `database_now`
    """The text under a key of a JSON object, or null.

    The key is a parameter. In a path, one with a quote would be an error of SQLite.
    """

    type = String()
    inherit_cache = True

    def __init__(self, column: Any, key: str) -> None:
        super().__init__(column, literal(key, String()))


@compiles(json_text, "postgresql")
def _postgresql_json_text(element: json_text, compiler: SQLCompiler, **options: Any) -> str:
    column, key = (compiler.process(part, **options) for part in element.clauses)
    return f"({column} ->> {key})"


@compiles(json_text, "sqlite")
def _sqlite_json_text(element: json_text, compiler: SQLCompiler, **options: Any) -> str:
    column, key = (compiler.process(part, **options) for part in element.clauses)
    # Both are SQL that the compiler wrote: a column and a parameter.
    return f"(SELECT pair.value FROM json_each({column}) AS pair WHERE pair.key = {key})"  # noqa: S608


def _dump_json(value: Any) -> str:
    """Return JSON that can be read and sent again: a program's text may contain unpaired surrogates."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace").decode()


def _record_use(_connection: Any, record: ConnectionPoolEntry) -> None:
    record.info["used_at"] = time.monotonic()


def _check_idle_connection(
    dialect: Dialect, connection: Any, record: ConnectionPoolEntry, _proxy: Any
) -> None:
    """Check a connection that was idle; a broken one is replaced by the pool, which raises if it cannot."""
    if time.monotonic() - record.info.get("used_at", time.monotonic()) < CHECK_AFTER_IDLE_SECONDS:
        return
    try:
        dialect.do_ping(connection)
    except dialect.loaded_dbapi.Error as error:
        raise DisconnectionError("The connection was closed while it was idle.") from error
