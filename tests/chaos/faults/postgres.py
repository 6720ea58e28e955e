"""Faults of PostgreSQL: connections ended, held or exhausted, and a server that crashes."""

import random
import signal
import time
from contextlib import ExitStack
from typing import Any

import psycopg

from tests.chaos.faults.fault import TEAM, Fault
from tests.chaos.platforms import Platform
from tests.chaos.process import send

DOWN_SECONDS = (0.2, 4.0)
HOLD_SECONDS = (1.0, 4.0)
MAX_CONNECTIONS = 200
CONNECT_SECONDS = 60.0
OTHER_BACKENDS = "backend_type = 'client backend' AND pid <> pg_backend_pid()"


def terminate_backends(platform: Platform, choose: random.Random) -> bool:
    """End a random half of the connections."""
    with _connect(platform) as connection:
        statement = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {OTHER_BACKENDS}"
        return bool(connection.execute(f"{statement} AND random() < 0.5").rowcount)


def restart(platform: Platform, choose: random.Random) -> bool:
    """Stop the server as a crash does, and start it again."""
    assert platform.postgres is not None
    platform.postgres.stop()
    time.sleep(choose.uniform(*DOWN_SECONDS))
    platform.postgres.start()
    return True


def suspend_backends(platform: Platform, choose: random.Random) -> bool:
    """Suspend the server's processes of all connections, with the locks that they hold."""
    with _connect(platform) as connection:
        rows = connection.execute(f"SELECT pid FROM pg_stat_activity WHERE {OTHER_BACKENDS}").fetchall()
    pids = [pid for (pid,) in rows]
    for pid in pids:
        send(pid, signal.SIGSTOP)
    time.sleep(choose.uniform(*HOLD_SECONDS))
    for pid in pids:
        send(pid, signal.SIGCONT)
    return bool(pids)


def exhaust_connections(platform: Platform, choose: random.Random) -> bool:
    """Open connections until the server refuses them."""
    with ExitStack() as stack:
        try:
            for _ in range(MAX_CONNECTIONS):
                stack.enter_context(_connect_once(platform))
        except psycopg.OperationalError:
            time.sleep(choose.uniform(*HOLD_SECONDS))
            return True
    return False


FAULTS = [
    Fault("connections to PostgreSQL ended", terminate_backends, 5, TEAM, "postgres"),
    Fault("PostgreSQL crashed", restart, 3, TEAM, "postgres"),
    Fault("backends of PostgreSQL suspended", suspend_backends, 3, TEAM, "postgres"),
    Fault("connections to PostgreSQL exhausted", exhaust_connections, 3, TEAM, "postgres"),
]


def _connect(platform: Platform) -> "psycopg.Connection[Any]":
    """Connect as soon as the server accepts it: the connections of an earlier fault end a moment later."""
    deadline = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            return _connect_once(platform)
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _connect_once(platform: Platform) -> "psycopg.Connection[Any]":
    assert platform.postgres is not None
    return psycopg.connect(platform.postgres.url, autocommit=True, connect_timeout=10)
