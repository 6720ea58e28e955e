"""The sweeper, which releases expired leases and notifies queues again whose runs still wait.

It runs in every API process and every worker, without a leader: each action is a guarded UPDATE, so only
one of several sweepers carries it out.
"""

import logging

from sqlalchemy import func, update
from sqlmodel import Session, col

from app.batches import lifecycle as batches
from app.deployments import lifecycle as deployments
from app.runs import lifecycle
from app.runs.claimable import select_claimable
from app.scheduling.periodic import PeriodicThread
from app.scheduling.queue import notify_after_commit
from app.settings import Settings
from app.storage.database import database_now, transaction
from app.tables import Run, RunStatus
from app.workers import service as workers
from app.workers.slots import count_free_slots
from trainers.configs import Queue

JITTER = 0.2

logger = logging.getLogger(__name__)


def sweep_once(settings: Settings) -> None:
    """Release runs and deployments with an expired lease, then notify idle workers of waiting runs."""
    with transaction() as session:
        for run in lifecycle.release_expired(session, settings.max_failures):
            logger.warning("released run %s, now %s", run.id, run.status, extra={"run_id": run.id})
        deployments.release_expired(session)
        batches.end_waiting(session)
    with transaction() as session:
        for queue in list_idle_queues(session, settings):
            if _claim_notification(session, queue, settings.renotify_seconds):
                notify_after_commit(session, queue)


def list_idle_queues(session: Session, settings: Settings) -> list[Queue]:
    """Return the queues on which a live worker has a free slot.

    Any other queue has nobody to receive a notification, which would stay in the broker.
    """
    free = count_free_slots(session, workers.list_alive_workers(session, settings)).values()
    return [queue for queue in Queue if any(slots.get(queue, 0) > 0 for slots in free)]


def create_sweeper(settings: Settings) -> PeriodicThread:
    """Create the thread that sweeps until it is stopped."""
    return PeriodicThread("sweeper", lambda: sweep_once(settings), settings.sweep_seconds, jitter=JITTER)


def _claim_notification(session: Session, queue: Queue, renotify_seconds: float) -> bool:
    """Mark the queue's next run as notified if it has waited long enough; return whether it was marked.

    The mark lets one sweeper only send the notification. Only the next run counts: one notification is
    enough, since the worker that receives it takes runs until none is left.
    """
    next_run = select_claimable([queue]).limit(1).scalar_subquery()
    waited = func.coalesce(Run.notified_at, Run.created_at) < database_now(-renotify_seconds)
    statement = update(Run).where(col(Run.id) == next_run, col(Run.status) == RunStatus.queued, waited)
    marked = session.scalars(
        statement.values(notified_at=database_now())
        .returning(col(Run.id))
        .execution_options(synchronize_session=False)
    )
    return marked.one_or_none() is not None
