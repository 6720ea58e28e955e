"""Connections to PostgreSQL: kept within the pool, and checked after they were idle."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, event, text

from app.settings import Settings
from app.storage import database
from app.storage.database import POOL_SIZE, create_database_engine, get_engine, read_session, transaction

on_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


def count_connects(engine: Engine) -> list[int]:
    """Return a list that grows with each new connection."""
    connects: list[int] = []
    event.listen(engine, "connect", lambda *_: connects.append(1))
    return connects


@on_postgresql
def test_writers_beyond_the_pool_wait_for_a_connection_instead_of_opening_one(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "POOL_TIMEOUT_SECONDS", 60)
    connects = count_connects(get_engine())

    def write(_: int) -> None:
        with transaction() as session:
            session.execute(text("SELECT pg_sleep(0.01)"))

    with ThreadPoolExecutor(3 * POOL_SIZE) as threads:
        list(threads.map(write, range(6 * POOL_SIZE)))
    assert len(connects) <= POOL_SIZE


@on_postgresql
def test_a_connection_that_the_server_closed_while_idle_is_replaced(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "CHECK_AFTER_IDLE_SECONDS", 0)
    with read_session() as session:
        pid = session.scalar(text("SELECT pg_backend_pid()"))
    other = create_database_engine(settings.database_url.get_secret_value())
    with other.begin() as connection:
        connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
    other.dispose()
    with read_session() as session:
        assert session.scalar(text("SELECT pg_backend_pid()")) != pid


@on_postgresql
def test_a_read_session_opens_no_transaction(settings: Settings) -> None:
    with read_session() as session:
        session.scalar(text("SELECT 1"))
        waiting = session.scalar(
            text("SELECT xact_start = query_start FROM pg_stat_activity WHERE pid = pg_backend_pid()")
        )
        assert waiting is True
