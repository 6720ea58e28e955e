"""Leases: while this worker renews one, no other worker may take the run or deployment."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlmodel import Session

from app.runs.lifecycle import StaleAttempt
from app.scheduling.incidents import Incident
from app.scheduling.periodic import PeriodicThread
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
        self._incident = Incident("lease renewal", subject=name)
        self._seconds = seconds
        self._renew = renew
        # Changed by the threads of the run or deployment and of its engine.
        self._processes: set[GuardedProcess] = set()
        self._lock = threading.Lock()
        self._has_ended = False
        self._deadline = since + seconds * KILL_AT_SHARE

    @property
    def seconds_left(self) -> float:
        """The time for which a program may run without a renewal."""
        return max(0.0, self._deadline - time.monotonic())

    def bind(self, process: GuardedProcess) -> None:
        """Extend the life of this process with each renewal."""
        with self._lock:
            self._processes.add(process)
        process.extend(self.seconds_left)

    def unbind(self, process: GuardedProcess) -> None:
        """Stop extending the life of this process: it has ended, or another lease is bound to it."""
        with self._lock:
            self._processes.discard(process)

    def end(self) -> None:
        """Stop renewing: the run has ended, and its lease with it."""
        self._has_ended = True
        self._incident.forget()

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
        except Exception as error:
            # Whatever prevents a renewal, the other leases must be renewed.
            if self._has_ended:
                return
            self._incident.record(error)
            if not self.seconds_left:
                self.lost.set()
        else:
            self._incident.resolve()
            self._deadline = requested_at + self._seconds * KILL_AT_SHARE
            with self._lock:
                processes = list(self._processes)
            for process in processes:
                process.extend(self.seconds_left)


class Leases:
    """The thread that renews all leases of this worker."""

    def __init__(self, heartbeat_seconds: float, announce: Callable[[], None]) -> None:
        self._announce = announce
        self._held: set[Lease] = set()
        self._lock = threading.Lock()
        # Without a longer interval after failures, which would lose the leases.
        self._thread = PeriodicThread(
            "heartbeat", self._renew_all, heartbeat_seconds, max_seconds=heartbeat_seconds
        )

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread and wait for it."""
        self._thread.stop()

    @contextmanager
    def hold(self, lease: Lease) -> Iterator[Lease]:
        """Renew a lease until the block ends."""
        with self._lock:
            self._held.add(lease)
        try:
            yield lease
        finally:
            lease.end()
            with self._lock:
                self._held.discard(lease)

    def _renew_all(self) -> None:
        with self._lock:
            held = list(self._held)
        for lease in held:
            lease.renew()
        self._announce()
