"""The sweeper: takes runs back from workers that fell silent, and rings for those that nobody has heard.

It runs in every API process and every worker. None of them leads: what it does is guarded, so that of
several only one does it.
"""

import logging
import random
import threading
from collections.abc import Callable

from sqlalchemy import func, select, update
from sqlalchemy.exc import DBAPIError
from sqlmodel import Session, col

from app.deployments import lifecycle as deployments
from app.runs import lifecycle
from app.scheduling.queue import notify_after_commit
from app.settings import Settings
from app.storage.database import database_now, transaction
from app.tables import HELD, Run, RunStatus
from app.workers import service as workers
from trainers.configs import Queue

JITTER = 0.2

logger = logging.getLogger(__name__)


def sweep_once(settings: Settings) -> None:
    """Release what is leased but not renewed, then ring idle workers for runs that were not heard of."""
    with transaction() as session:
        for run in lifecycle.release_expired(session, settings.max_faults):
            logger.warning("released run %s, now %s", run.id, run.status, extra={"run_id": run.id})
        deployments.release_expired(session)
    with transaction() as session:
        for queue in list_idle_queues(session, settings):
            if _mark_unheard(session, queue, settings.ring_again_seconds):
                notify_after_commit(session, queue)


def list_idle_queues(session: Session, settings: Settings) -> list[Queue]:
    """Queues that a living worker without a run serves: a bell of another would wait unheard."""
    busy = set(session.scalars(select(col(Run.worker_id)).where(col(Run.status).in_(HELD))))
    idle = [worker for worker in workers.list_alive_workers(session, settings) if worker.id not in busy]
    return [queue for queue in Queue if any(queue in worker.queues for worker in idle)]


class Sweeper:
    """A thread that sweeps until it is stopped, and does what else its process has to look after."""

    def __init__(self, settings: Settings, also: Callable[[], None] | None = None) -> None:
        self._settings = settings
        self._also = also
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)

    def start(self) -> None:
        """Begin sweeping."""
        self._thread.start()

    def stop(self) -> None:
        """End after the sweep that is under way."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(self._settings.sweep_seconds * random.uniform(1 - JITTER, 1 + JITTER)):  # noqa: S311
            try:
                sweep_once(self._settings)
                if self._also is not None:
                    self._also()
            except DBAPIError as error:
                logger.warning("the database cannot be written, sweeping again later: %s", error.orig)


def _mark_unheard(session: Session, queue: Queue, ring_again_seconds: float) -> bool:
    """Whether the queue's next run has waited unheard for so long; it is marked, so that one sweeper rings.

    Only the next run is looked at: a bell for each run that waits would fill the broker with bells that
    nobody needs, since a worker that hears one goes on until nothing is left.
    """
    next_run = lifecycle.select_claimable([queue]).limit(1).scalar_subquery()
    unheard = func.coalesce(Run.notified_at, Run.created_at) < database_now(-ring_again_seconds)
    statement = update(Run).where(col(Run.id) == next_run, col(Run.status) == RunStatus.queued, unheard)
    marked = session.scalars(
        statement.values(notified_at=database_now())
        .returning(col(Run.id))
        .execution_options(synchronize_session=False)
    )
    return marked.one_or_none() is not None
