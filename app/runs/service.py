"""Reading runs and their events."""

from collections.abc import Sequence

from sqlalchemy import func, literal, select
from sqlmodel import Session, col

from app.http.errors import NotFound
from app.http.paging import EventPageQuery, paginate_by_seq
from app.runs.graph import list_needed_names, load_needs
from app.runs.groups.members import list_shown_members
from app.runs.schemas import RunView, RunWarningView, run_view, warning_view
from app.settings import Settings
from app.tables import Event, EventType, Run
from app.tables.base import enum_type
from app.workers import service as workers
from app.workers.waiting import explain_waiting
from trainers.runtime.error_codes import ErrorCode

# Warnings in the view of a job; the events of a run contain all.
MAX_WARNINGS = 50


class RunNotFound(NotFound):
    """No run has this id."""

    code = ErrorCode.run_not_found


def get_run(session: Session, run_id: str) -> Run:
    """Return the run; raises RunNotFound."""
    run = session.get(Run, run_id)
    if run is None:
        raise RunNotFound(f"There is no run {run_id}.", hint="GET /api/v1/jobs/{id} lists the runs of a job.")
    return run


def view_run(session: Session, settings: Settings, run_id: str) -> RunView:
    """Build the view of a run, with what it needs and waits for; raises RunNotFound."""
    run = get_run(session, run_id)
    runs_of_job = select(Run).where(col(Run.job_id) == run.job_id).order_by(col(Run.position))
    runs, needs = session.scalars(runs_of_job).all(), load_needs(session, run.job_id)
    waiting = explain_waiting(session, workers.AliveWorkers(settings), runs, needs).get(run.id)
    members = list_shown_members(session, [run]).get(run.id, [])
    return run_view(run, waiting, list_needed_names(runs, needs)[run.id], members)


def list_events(
    session: Session, run_id: str, paging: EventPageQuery, types: Sequence[EventType] | None
) -> tuple[Sequence[Event], int | None]:
    """Return a page of a run's events, oldest first, optionally of some types only."""
    get_run(session, run_id)
    statement = select(Event).where(col(Event.run_id) == run_id)
    if types:
        statement = statement.where(col(Event.type).in_(types))
    return paginate_by_seq(session, statement, col(Event.seq), paging)


def list_warnings(session: Session, runs: Sequence[Run]) -> tuple[list[RunWarningView], int]:
    """Return the first warnings of a job's runs, in the order of the runs, and the number of the rest."""
    by_run = {run.id: run for run in runs if run.event_seq > 1}
    if not by_run:
        return [], 0
    # The literal lets SQLite use the index of warnings, which it cannot match with a parameter.
    warning = literal(EventType.warning, enum_type(EventType), literal_execute=True)
    of_job = [col(Event.run_id).in_(by_run), col(Event.type) == warning]
    count = session.scalar(select(func.count()).select_from(Event).where(*of_job)) or 0
    if not count:
        return [], 0
    statement = select(Event).join(Run, col(Run.id) == col(Event.run_id)).where(*of_job)
    ordered = statement.order_by(col(Run.position), col(Event.seq)).limit(MAX_WARNINGS)
    views = [warning_view(event, by_run[event.run_id]) for event in session.scalars(ordered)]
    return views, count - len(views)
