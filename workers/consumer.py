"""The Celery consumer of a worker, which no failure of the broker can end."""

import contextlib
import threading
import time
from typing import Any

from celery.utils.threads import bound_open_broker_sockets
from celery.worker.consumer import Consumer
from celery.worker.state import maybe_shutdown

from app.scheduling.incidents import Incident

CLOSE_SECONDS = 5.0
# The wait before a new connection doubles with each failure. A connection that lives STABLE_SECONDS is good.
FIRST_RETRY_SECONDS = 0.5
MAX_RETRY_SECONDS = 30.0
STABLE_SECONDS = 10.0
POLL_SECONDS = 0.1


class PersistentConsumer(Consumer):
    """A consumer that connects again after every exception.

    Celery's own does so for lost connections only. A malformed message, a key of the wrong type, and a Redis
    that is full, read-only or asks for a password end its worker. Here a malformed message, which Redis has
    handed out already, is lost: it is only a notification.
    """

    connection: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.connection_errors = (Exception,)
        self._incident = Incident("broker", consequence="; runs are found by polling meanwhile")
        self._retry_seconds = FIRST_RETRY_SECONDS
        self._n_failures = 0

    def ensure_connected(self, conn: Any) -> Any:
        """Connect once: `start` repeats it."""
        conn.connect()
        return conn

    def on_ready(self) -> None:
        super().on_ready()
        timer = threading.Timer(STABLE_SECONDS, self._resolve, [self._n_failures])
        timer.daemon = True
        timer.start()

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        self._wait_after(exc)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        connection, self.connection = self.connection, None
        with contextlib.suppress(Exception):
            bound_open_broker_sockets(connection, CLOSE_SECONDS)
            connection.collect(socket_timeout=CLOSE_SECONDS)
        with contextlib.suppress(Exception):
            connection.close()
        self._wait_after(exc)

    def _wait_after(self, error: Exception) -> None:
        self._incident.record(error)
        self._n_failures += 1
        deadline = time.monotonic() + self._retry_seconds
        self._retry_seconds = min(2 * self._retry_seconds, MAX_RETRY_SECONDS)
        while time.monotonic() < deadline:
            maybe_shutdown()
            time.sleep(POLL_SECONDS)

    def _resolve(self, n_failures: int) -> None:
        """End the incident if the connection that was made after so many failures is still in use."""
        if n_failures == self._n_failures:
            self._incident.resolve()
            self._retry_seconds = FIRST_RETRY_SECONDS
