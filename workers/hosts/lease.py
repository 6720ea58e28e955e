"""Leases: while this worker renews one, no other worker may take the run or deployment."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError
from sqlmodel import Session

from app.runs.lifecycle import StaleAttempt
from app.storage.database import transaction
from workers.hosts.guarded_process import GuardedProcess

logger = logging.getLogger(__name__)

# Without a renewal, the program is killed after this share of the lease: well before the lease ends by the
# database's clock, so that two programs never work on one run.
KILL_AT_SHARE = 0.85


class Lease:
    """The lease of one run or deployment that this worker holds.

    `since` is this host's monotonic time before the claim was sent. The database's lease can only end later
    than one counted from there.
    """

    def __init__(self, name: str, seconds: float, since: float, renew: Callable[[Session], object]) -> None:
        self.name = name
        self.lost = threading.Event()
        self._seconds = seconds
        self._renew = renew
        self._processes: list[GuardedProcess] = []
        self._has_ended = False
        self._deadline = since + seconds * KILL_AT_SHARE

    @property
    def seconds_left(self) -> float:
        """The time for which a program may run without a renewal."""
        return max(0.0, self._deadline - time.monotonic())

    def bind(self, process: GuardedProcess) -> None:
        """Extend the life of this process with each renewal."""
        self._processes = [*self._processes, process]
        process.extend(self.seconds_left)

    def unbind(self, process: GuardedProcess) -> None:
        """Stop extending the life of this process: it has ended, or another lease is bound to it."""
        self._processes = [bound for bound in self._processes if bound is not process]

    def end(self) -> None:
        """Stop renewing: the run has ended, and its lease with it."""
        self._has_ended = True

    def renew(self) -> None:
        """Renew once; while the database is unavailable, the deadline stays as it is."""
        if self._has_ended:
            return
        requested_at = time.monotonic()
        try:
            with transaction() as session:
                self._renew(session)
        except StaleAttempt:
            logger.warning("lost the lease of %s", self.name)
            self.lost.set()
        except DBAPIError as error:
            logger.warning("cannot renew the lease of %s: %s", self.name, error.orig)
            if not self.seconds_left:
                self.lost.set()
        else:
            self._deadline = requested_at + self._seconds * KILL_AT_SHARE
            for process in self._processes:
                process.extend(self.seconds_left)


class Leases:
    """The thread that renews all leases of this worker."""

    def __init__(self, heartbeat_seconds: float, announce: Callable[[], None]) -> None:
        self._heartbeat_seconds = heartbeat_seconds
        self._announce = announce
        self._held: set[Lease] = set()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread and wait for it."""
        self._stopping.set()
        self._thread.join()

    @contextmanager
    def hold(self, lease: Lease) -> Iterator[Lease]:
        """Renew a lease until the block ends."""
        with self._lock:
            self._held.add(lease)
        try:
            yield lease
        finally:
            with self._lock:
                self._held.discard(lease)

    def _run(self) -> None:
        while not self._stopping.wait(self._heartbeat_seconds):
            with self._lock:
                held = list(self._held)
            for lease in held:
                lease.renew()
            try:
                self._announce()
            except DBAPIError as error:
                logger.warning("cannot announce this worker: %s", error.orig)
