"""Queues: how much their workers can hold, and which runs wait for them, in the order of their start."""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, and_, case, func, or_, select
from sqlmodel import Session, col

from app.http.paging import PageQuery
from app.runs.schemas import run_summary_view
from app.runs.service import get_run
from app.storage.database import database_now
from app.tables import HELD, Run, RunStatus
from app.workers.schemas import QueueView, WaitingRunView
from app.workers.service import AliveWorkers
from app.workers.slots import sum_slots
from app.workers.waiting import MAX_COUNTED_AHEAD, count_ahead, explain_waiting
from trainers.configs import Queue

# Whether a run waits for its queue, and not for an earlier stage of its job.
WAITING = and_(col(Run.status) == RunStatus.queued, col(Run.unmet_needs) == 0)


def list_queues(session: Session, alive: AliveWorkers) -> list[QueueView]:
    """Return all queues, with what their live workers can hold and how many runs they have."""
    workers = alive.read(session)
    columns = [
        func.sum(case((condition, 1), else_=0))
        for condition in (
            col(Run.status).in_(HELD),
            WAITING,
            and_(col(Run.status) == RunStatus.queued, col(Run.unmet_needs) > 0),
        )
    ]
    unfinished = col(Run.status).in_([RunStatus.queued, *HELD])
    rows = session.execute(select(col(Run.queue), *columns).where(unfinished).group_by(col(Run.queue)))
    counts = {row[0]: row[1:] for row in rows}
    views, sums = [], sum_slots(session, workers)
    for queue in Queue:
        slots, free = sums[queue]
        running, waiting, later = counts.get(queue, (0, 0, 0))
        views.append(
            QueueView(
                queue=queue,
                workers=sum(queue in worker.queues for worker in workers),
                slots=slots,
                free_slots=free,
                running=running,
                waiting=waiting,
                later=later,
            )
        )
    return views


def list_waiting_runs(
    session: Session, alive: AliveWorkers, queue: Queue, paging: PageQuery
) -> tuple[list[WaitingRunView], str | None]:
    """Return a page of the runs that wait for a queue, in the order of their start, with the reasons.

    Raises RunNotFound if the last run of the previous page was deleted.
    """
    statement = select(Run).where(WAITING, col(Run.queue) == queue)
    if paging.after is not None:
        statement = statement.where(_follows(get_run(session, paging.after)))
    ordered = statement.order_by(col(Run.priority).desc(), col(Run.id)).limit(paging.limit + 1)
    runs = session.scalars(ordered).all()
    after = runs[paging.limit - 1].id if len(runs) > paging.limit else None
    runs = runs[: paging.limit]
    reasons = explain_waiting(session, alive, runs, {}, _count_all_ahead(session, runs))
    return [
        WaitingRunView(**run_summary_view(run).model_dump(), waiting_for=reasons[run.id]) for run in runs
    ], after


def _follows(run: Run) -> ColumnElement[bool]:
    """Return the SQL condition that a run starts after another one."""
    is_younger = and_(col(Run.priority) == run.priority, col(Run.id) > run.id)
    return or_(col(Run.priority) < run.priority, is_younger)


def _count_all_ahead(session: Session, runs: Sequence[Run]) -> dict[str, int]:
    """Return how many runs start before each of consecutive runs; one that is retried later does not."""
    if not runs:
        return {}
    now = session.scalars(select(database_now())).one()
    ahead, n_ahead = {}, count_ahead(session, runs[0])
    for run in runs:
        ahead[run.id] = min(n_ahead, MAX_COUNTED_AHEAD)
        n_ahead += run.claimable_at is None or run.claimable_at <= now
    return ahead
