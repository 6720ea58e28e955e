"""Checks of what the service depends on, each with a time limit."""

import logging
import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future

from app.scheduling.incidents import describe_error
from app.scheduling.queue import check_broker
from app.storage import migrate
from app.storage.database import get_engine
from app.storage.opening import get_store

logger = logging.getLogger(__name__)

LIMIT_SECONDS = 3.0
CHECK_FOLDER = "health"


class NotMigrated(Exception):
    """The database has another schema than this version of the service needs."""


class TimedCheck:
    """A check that runs in a thread of its own, one at a time: a dependency that hangs holds one thread."""

    def __init__(self, name: str, check: Callable[[], None]) -> None:
        self._name = name
        self._check = check
        self._lock = threading.Lock()
        self._running: Future[None] | None = None

    def start(self) -> "Future[None]":
        """Return the check that is running, or start it."""
        with self._lock:
            if self._running is None or self._running.done():
                result: Future[None] = Future()
                # A daemon, so that a check that hangs does not keep the process from ending.
                thread = threading.Thread(
                    target=self._run, args=(result,), name=f"check of {self._name}", daemon=True
                )
                # Remembered after the start, which fails on a host without free threads.
                thread.start()
                self._running = result
            return self._running

    def run(self) -> None:
        """Check, and raise what is wrong; TimeoutError after LIMIT_SECONDS."""
        try:
            self.start().result(LIMIT_SECONDS)
        except TimeoutError as error:
            raise TimeoutError(f"the {self._name} does not respond within {LIMIT_SECONDS:g} s") from error

    def _run(self, result: "Future[None]") -> None:
        try:
            self._check()
        except BaseException as error:
            result.set_exception(error)
        else:
            result.set_result(None)


def check_database() -> None:
    """Check that the database is reachable, and at the revision of this version; raises NotMigrated."""
    current, head = migrate.get_revisions(get_engine())
    if current != head:
        raise NotMigrated(f"at revision {current}, not {head}: run `python -m app migrate`")


def check_store() -> None:
    """Write, read and delete a small file in the artifact store."""
    get_store().check(f"{CHECK_FOLDER}/{socket.gethostname()}-{os.getpid()}")


def report_unavailable() -> None:
    """Log whether the artifact store or the broker is unavailable; the database is prepared anyway."""
    for name, check in (("artifact store", check_store), ("broker", check_broker)):
        try:
            TimedCheck(name, check).run()
        except Exception as error:
            logger.error("the %s is unavailable: %s", name, describe_error(error))
