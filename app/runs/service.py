"""Reading runs: their events and checkpoints."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlmodel import Session, col

from app.http.errors import NotFound
from app.http.paging import EventPageQuery, PageQuery, paginate_by_seq, paginate_newest_first
from app.settings import Settings
from app.tables import Checkpoint, Event, EventType, Run
from app.workers import service as workers
from trainers.runtime.error_codes import ErrorCode


class RunNotFound(NotFound):
    """No run has this id."""

    code = ErrorCode.run_not_found


def get_run(session: Session, run_id: str) -> Run:
    """Return the run; raises RunNotFound."""
    run = session.get(Run, run_id)
    if run is None:
        raise RunNotFound(f"There is no run {run_id}.", hint="GET /api/v1/jobs/{id} lists the runs of a job.")
    return run


def explain_waiting(session: Session, settings: Settings, run: Run) -> str | None:
    """Return what a queued run waits for, or None."""
    runs_of_job = select(Run).where(col(Run.job_id) == run.job_id).order_by(col(Run.position))
    return workers.explain_waiting(session, settings, session.scalars(runs_of_job).all()).get(run.id)


def list_events(
    session: Session, run_id: str, paging: EventPageQuery, types: Sequence[EventType] | None
) -> tuple[Sequence[Event], int | None]:
    """Return a page of a run's events, oldest first, optionally of some types only."""
    get_run(session, run_id)
    statement = select(Event).where(col(Event.run_id) == run_id)
    if types:
        statement = statement.where(col(Event.type).in_(types))
    return paginate_by_seq(session, statement, col(Event.seq), paging)


def list_checkpoints(
    session: Session, run_id: str, paging: PageQuery
) -> tuple[Sequence[Checkpoint], str | None]:
    """Return a page of a run's published checkpoints, newest first."""
    get_run(session, run_id)
    statement = select(Checkpoint).where(col(Checkpoint.run_id) == run_id)
    return paginate_newest_first(session, statement, col(Checkpoint.id), paging)
