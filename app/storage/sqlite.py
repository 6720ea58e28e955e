"""What several writers need from SQLite: turns in this process, and waiting for other processes."""

import random
import sqlite3
import threading
import time
from collections import defaultdict
from typing import Any

from sqlalchemy import Connection, ExceptionContext
from sqlalchemy.exc import DatabaseError, OperationalError

BUSY_TIMEOUT_SECONDS = 5.0
BUSY_POLL_SECONDS = 0.001

_turns: dict[str, threading.Lock] = defaultdict(threading.Lock)


class TurnConnection(sqlite3.Connection):
    """A connection to SQLite that has the turn of its process during a writing transaction.

    SQLite lets a writer wait by sleeping, longer and longer, up to 100 ms: the lock is often free while all
    writers sleep, and one that has just begun to wait overtakes those that have waited for long. Here the
    writers of a process wait for a lock in memory, which wakes the next one at once. Only the one whose turn
    it is polls the lock of the file, for which it competes with other processes.
    """

    def __init__(self, database: str, *args: Any, **options: Any) -> None:
        super().__init__(database, *args, **options)
        self._turn = _turns[database]
        self._has_turn = False

    def wait_for_turn(self, seconds: float) -> None:
        """Wait until no other connection of this process writes."""
        self._has_turn = self._turn.acquire(timeout=max(0.0, seconds))

    def end_turn(self) -> None:
        """Let the next connection write."""
        if self._has_turn and not self.in_transaction:
            self._has_turn = False
            self._turn.release()

    def commit(self) -> None:
        """Commit, and end the turn unless the commit failed."""
        super().commit()
        self.end_turn()

    def rollback(self) -> None:
        """Roll back, and end the turn."""
        super().rollback()
        self.end_turn()

    def close(self) -> None:
        """Close, which rolls back what is not committed."""
        super().close()
        if self._has_turn:
            self._has_turn = False
            self._turn.release()


def prepare_connection(connection: Any, _record: Any) -> None:
    """Apply our settings to a new connection."""
    # The driver's own implicit BEGIN is deferred; ours (below) is not.
    connection.isolation_level = None
    for pragma in (
        f"busy_timeout = {BUSY_TIMEOUT_SECONDS * 1000:.0f}",
        "journal_mode = WAL",
        "synchronous = FULL",
        "foreign_keys = ON",
    ):
        connection.execute(f"PRAGMA {pragma}")


def classify_damage(context: ExceptionContext) -> Exception | None:
    """Report a file that is damaged as any other one that cannot be used: SQLite has no class for it."""
    error = context.sqlalchemy_exception
    if type(error) is DatabaseError and error.orig is not None:
        return OperationalError(error.statement, error.params, error.orig)
    return None


def begin_transaction(connection: Connection) -> None:
    """Begin a transaction that takes the lock of writers at once, unless it only reads."""
    # A deferred transaction that turns from reading to writing fails at once when another transaction
    # wrote in between, and ignores the busy timeout; an immediate one waits.
    read_only = connection.get_execution_options().get("read_only", False)
    if read_only:
        connection.exec_driver_sql("BEGIN")
    else:
        _begin_immediate(connection)


def _begin_immediate(connection: Connection) -> None:
    """Begin a writing transaction; raises OperationalError if that is not possible in time."""
    sqlite = connection.connection.dbapi_connection
    assert isinstance(sqlite, TurnConnection)
    deadline = time.monotonic() + BUSY_TIMEOUT_SECONDS
    sqlite.wait_for_turn(BUSY_TIMEOUT_SECONDS)
    try:
        # Without SQLite's own waiting. Readers keep it, because they wait for recoveries only.
        sqlite.execute("PRAGMA busy_timeout = 0")
        while not _try_begin(connection, is_last=time.monotonic() > deadline):
            time.sleep(BUSY_POLL_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311
    finally:
        sqlite.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_SECONDS * 1000:.0f}")
        sqlite.end_turn()


def _try_begin(connection: Connection, *, is_last: bool) -> bool:
    try:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    except OperationalError as error:
        if is_last or getattr(error.orig, "sqlite_errorcode", None) != sqlite3.SQLITE_BUSY:
            raise
        return False
    return True
