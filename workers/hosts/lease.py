"""Leases: while this worker renews them, nobody else may take what it holds."""

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

# The program dies when this share of the lease has gone by without a renewal: well before the lease
# ends by the database's clock, so that no two programs ever work on one run.
STOP_AT = 0.85


class Lease:
    """One run or deployment held by this worker.

    `since` is this host's monotonic time from before it was asked for: the database's lease can only
    end later than one counted from there.
    """

    def __init__(self, name: str, seconds: float, since: float, renew: Callable[[Session], object]) -> None:
        self.name = name
        self.lost = threading.Event()
        self._seconds = seconds
        self._renew = renew
        self._children: list[GuardedProcess] = []
        self._has_ended = False
        self._deadline = since + seconds * STOP_AT

    @property
    def seconds_left(self) -> float:
        """How long a program may go on without a renewal."""
        return max(0.0, self._deadline - time.monotonic())

    def bind(self, child: GuardedProcess) -> None:
        """From now on, renewals let this program go on too."""
        self._children = [*self._children, child]
        child.extend(self.seconds_left)

    def unbind(self, child: GuardedProcess) -> None:
        """The program has ended, or goes on by another lease."""
        self._children = [bound for bound in self._children if bound is not child]

    def end(self) -> None:
        """What was held is held no more, as it should be: there is nothing to renew."""
        self._has_ended = True

    def renew(self) -> None:
        """Renew once; a database out of reach leaves the deadline as it is."""
        if self._has_ended:
            return
        asked_at = time.monotonic()
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
            self._deadline = asked_at + self._seconds * STOP_AT
            for child in self._children:
                child.extend(self.seconds_left)


class Leases:
    """Renews all that this worker holds, in a thread of its own."""

    def __init__(self, heartbeat_seconds: float, announce: Callable[[], None]) -> None:
        self._heartbeat_seconds = heartbeat_seconds
        self._announce = announce
        self._held: set[Lease] = set()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def stop(self) -> None:
        """End the beat."""
        self._stopping.set()
        self._thread.join()

    @contextmanager
    def hold(self, lease: Lease) -> Iterator[Lease]:
        """Renew a lease for as long as the block lasts."""
        with self._lock:
            self._held.add(lease)
        try:
            yield lease
        finally:
            with self._lock:
                self._held.discard(lease)

    def _beat(self) -> None:
        while not self._stopping.wait(self._heartbeat_seconds):
            with self._lock:
                held = list(self._held)
            for lease in held:
                lease.renew()
            try:
                self._announce()
            except DBAPIError as error:
                logger.warning("cannot announce this worker: %s", error.orig)
