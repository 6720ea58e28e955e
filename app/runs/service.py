"""Reading runs: their events, checkpoints and files."""

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import BinaryIO

from sqlalchemy import select
from sqlmodel import Session, col

from app.http.errors import NotFound
from app.http.paging import EventPageQuery, PageQuery, paginate_by_seq, paginate_newest_first
from app.settings import Settings
from app.storage.artifacts import get_store
from app.tables import Checkpoint, Event, EventType, Run
from app.workers import service as workers
from trainers.runtime.error_codes import ErrorCode


class RunNotFound(NotFound):
    """No run has this id."""

    code = ErrorCode.run_not_found


class FileNotPublished(NotFound):
    """The run has no such file; files are published when an attempt ends."""

    code = ErrorCode.file_not_published


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


def open_file(session: Session, run_id: str, name: str) -> BinaryIO:
    """Open a published file of the run's last attempt; raises FileNotPublished.

    The file is opened before the response starts, so that an error still becomes an error response.
    """
    run = get_run(session, run_id)
    if run.log_artifact is None and run.status.finished:
        raise FileNotPublished(
            f"The files of {run_id} were not published, or were deleted to bound the disk space of old runs.",
            hint="TUNESMITH_MAX_RUN_FILES_BYTES is the limit. The metrics of the run are kept.",
        )
    if (log_artifact := run.log_artifact) is None:
        raise FileNotPublished(
            f"{run_id} has not published the file {name}: files are published when an attempt ends.",
            hint=f"GET /api/v1/runs/{run_id}/logs lists its log lines so far.",
        )
    key = str(PurePosixPath(log_artifact).with_name(name))
    if not get_store().exists(key):
        raise FileNotPublished(
            f"{run_id} has no file {name}.",
            hint="Its files are `log.txt`, `events.jsonl`, and those that its `result` names.",
        )
    return get_store().open(key)
