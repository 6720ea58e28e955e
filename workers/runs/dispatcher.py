"""Dispatcher: claims as many runs as this worker has room for, and executes each in a thread of its own."""

import contextlib
import random
import threading
from collections import Counter

from app.scheduling.incidents import Incident
from app.storage.database import DATABASE_UNAVAILABLE
from trainers.configs import Queue, StageKind
from workers.hosts.worker import WorkerContext
from workers.nodes.offers import GroupOffers
from workers.runs.claim import ClaimedRun
from workers.runs.execute import execute

JITTER = 0.2
ROOM_POLL_SECONDS = 0.5
# While this worker has offered itself for a run on several hosts.
OFFER_POLL_SECONDS = 1.0


class RunDispatcher:
    """The runs that this worker holds.

    It claims when it is woken (by a notification, or when a run or an engine has ended), and by itself every
    `sweep_seconds`: a lost notification, or a GPU that another worker has released, only costs that time.
    """

    def __init__(self, worker: WorkerContext) -> None:
        self._worker = worker
        self._incident = Incident("claim of runs")
        self._offers = GroupOffers(worker)
        self._claiming = threading.Lock()
        self._threads: dict[threading.Thread, ClaimedRun] = {}
        self._thread = threading.Thread(target=self._run, name="dispatcher")

    def start(self) -> None:
        """Start to claim runs."""
        self._thread.start()

    def join(self) -> None:
        """Wait until the dispatcher and all runs have ended; the worker must be stopping."""
        self._worker.wake.set()
        self._thread.join()

    def fill(self) -> None:
        """Claim and start runs until there is none left that this worker has room for.

        A failure is an incident, and the next poll tries again.
        """
        try:
            with self._claiming:
                self._claim_all()
        except Exception as error:
            self._incident.record(error)
        else:
            self._incident.resolve()

    def wait_for_room(self) -> None:
        """Wait until one of the queues has room for a run, or the worker is stopping."""
        while not self._has_room() and not self._worker.stopping.wait(ROOM_POLL_SECONDS):
            pass

    def _run(self) -> None:
        seconds = self._worker.settings.sweep_seconds
        while not self._worker.stopping.is_set():
            pause = min(seconds, OFFER_POLL_SECONDS) if self._offers.is_standing else seconds
            self._worker.wake.wait(pause * random.uniform(1 - JITTER, 1 + JITTER))  # noqa: S311
            self._worker.wake.clear()
            self.fill()
        # A claim that a notification began before the stop starts its run while it holds the lock.
        with self._claiming:
            threads = list(self._threads)
            with contextlib.suppress(*DATABASE_UNAVAILABLE):
                self._offers.close()
        for thread in threads:
            thread.join()

    def _claim_all(self) -> None:
        while not self._worker.stopping.is_set() and self._worker.store_gate.is_open():
            claimed = self._offers.claim_next(self._full_queues(), self._full_stages())
            if claimed is None:
                return
            self._start(claimed)

    def _start(self, claimed: ClaimedRun) -> None:
        thread = threading.Thread(target=self._execute, args=(claimed,), name=claimed.run.id)
        self._threads[thread] = claimed
        try:
            thread.start()
        except RuntimeError:
            # The host has no thread left. The sweeper returns the run to its queue when its lease ends.
            del self._threads[thread]
            self._worker.release_devices(claimed.devices)
            raise

    def _execute(self, claimed: ClaimedRun) -> None:
        try:
            execute(self._worker, claimed)
        finally:
            del self._threads[threading.current_thread()]
            self._worker.wake.set()

    def _has_room(self) -> bool:
        queues = set(self._worker.queues) - self._full_queues()
        return bool(queues - {Queue.cuda}) or (Queue.cuda in queues and not self._worker.devices.all_held)

    def _full_queues(self) -> frozenset[Queue]:
        """Return the queues other than `cuda` on which this worker holds as many runs as the settings allow.

        A run without a device of its own (`deploy`) is not counted.
        """
        held = Counter(c.run.queue for c in list(self._threads.values()) if c.run.device_count)
        limit = self._worker.settings.max_runs_per_queue
        return frozenset(queue for queue, count in held.items() if queue is not Queue.cuda and count >= limit)

    def _full_stages(self) -> frozenset[StageKind]:
        """Return the stage `batch` while this worker sends as many batches as the settings allow."""
        n_batches = sum(c.run.stage is StageKind.batch for c in list(self._threads.values()))
        is_full = n_batches >= self._worker.settings.max_batches_per_worker
        return frozenset({StageKind.batch}) if is_full else frozenset()
