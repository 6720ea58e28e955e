"""Writing transactions on SQLite take turns, whatever ends the one before."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError

from app.storage import sqlite
from app.storage.database import create_database_engine


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """Return an engine on a file with a table of one number, which is 0."""
    # The last of many writers waits for the disk as often as there are writers.
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_SECONDS", 60.0)
    engine = create_database_engine(f"sqlite:///{tmp_path / 'file.db'}")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE number (value INTEGER)"))
        connection.execute(text("INSERT INTO number VALUES (0)"))
    return engine


def increment(engine: Engine) -> None:
    with engine.begin() as connection:
        value = connection.scalar(text("SELECT value FROM number"))
        connection.execute(text("UPDATE number SET value = :value"), {"value": value + 1})


def test_threads_write_one_after_another_on_all_engines_of_a_file(engine: Engine) -> None:
    other = create_database_engine(str(engine.url))
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(increment, [engine, other] * 32))
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT value FROM number")) == 64


@pytest.mark.parametrize("end", ["commit", "rollback", "close", "invalidate"])
def test_the_end_of_a_transaction_passes_the_turn_on(engine: Engine, end: str) -> None:
    connection = engine.connect()
    connection.execute(text("UPDATE number SET value = 5"))
    next_writer = threading.Thread(target=increment, args=(engine,))
    next_writer.start()
    getattr(connection, end)()
    next_writer.join(sqlite.BUSY_TIMEOUT_SECONDS)
    assert not next_writer.is_alive()
    connection.close()


def test_a_writer_gives_up_after_a_time_and_passes_the_turn_on(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_SECONDS", 0.1)
    with engine.begin(), pytest.raises(OperationalError, match="locked"):
        increment(engine)
    foreign = create_database_engine(str(engine.url))
    monkeypatch.setattr(sqlite, "_turns", {engine.url.database: threading.Lock()})
    with foreign.begin(), pytest.raises(OperationalError, match="locked"):
        increment(engine)
    increment(engine)


def test_readers_do_not_wait_for_a_writer(engine: Engine) -> None:
    reader = engine.execution_options(read_only=True)
    with engine.begin() as writer, reader.connect() as connection:
        writer.execute(text("UPDATE number SET value = 7"))
        assert connection.scalar(text("SELECT value FROM number")) == 0
