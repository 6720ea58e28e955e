"""Reading runs: their events, metrics, logs and checkpoints."""

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import BinaryIO

from sqlalchemy import select
from sqlmodel import Session, col

from app.http.errors import NotFound
from app.http.paging import EventPageQuery, PageQuery, paginate_by_seq, paginate_newest_first
from app.runs.schemas import RunView, run_view
from app.settings import Settings
from app.storage.artifacts import get_store, read_chunks
from app.tables import Checkpoint, Event, EventType, Run
from app.workers import service as workers
from trainers.runtime.error_codes import ErrorCode


class RunNotFound(NotFound):
    """No run has this id."""

    code = ErrorCode.run_not_found


class FileNotPublished(NotFound):
    """What a program wrote becomes an artifact when its attempt ends."""

    code = ErrorCode.file_not_published


def get(session: Session, run_id: str) -> Run:
    """The run of this id; raises RunNotFound."""
    run = session.get(Run, run_id)
    if run is None:
        raise RunNotFound(
            f"There is no run {run_id}.", hint="A job's runs are listed by GET /api/v1/jobs/{id}."
        )
    return run


def show(session: Session, settings: Settings, run_id: str) -> RunView:
    """A run and what it waits for."""
    run = get(session, run_id)
    of_job = session.scalars(
        select(Run).where(col(Run.job_id) == run.job_id).order_by(col(Run.position))
    ).all()
    return run_view(run, workers.explain_waiting(session, settings, of_job).get(run_id))


def events(
    session: Session, run_id: str, paging: EventPageQuery, types: Sequence[EventType] | None
) -> tuple[Sequence[Event], int | None]:
    """Events of a run in order, of some types or of all."""
    get(session, run_id)
    statement = select(Event).where(col(Event.run_id) == run_id)
    if types:
        statement = statement.where(col(Event.type).in_(types))
    return paginate_by_seq(session, statement, col(Event.seq), paging)


def checkpoints(session: Session, run_id: str, paging: PageQuery) -> tuple[Sequence[Checkpoint], str | None]:
    """Published checkpoints of a run from new to old."""
    get(session, run_id)
    statement = select(Checkpoint).where(col(Checkpoint.run_id) == run_id)
    return paginate_newest_first(session, statement, col(Checkpoint.id), paging)


def file_artifact(session: Session, run_id: str, name: str) -> str:
    """Key of a file that the last attempt's program left; raises FileNotPublished."""
    log = get(session, run_id).log_artifact
    key = str(PurePosixPath(log).with_name(name)) if log else None
    if key is None:
        raise FileNotPublished(
            f"{run_id} has no file {name} yet: files are published when an attempt ends.",
            hint=f"Its log lines so far are at GET /api/v1/runs/{run_id}/logs.",
        )
    if not get_store().exists(key):
        raise FileNotPublished(
            f"{run_id} left no file {name}.",
            hint="There are `log.txt`, `events.jsonl`, and what the run's `result` names.",
        )
    return key


def file_content(key: str) -> Iterator[bytes]:
    """The published file in pieces; it is opened at once, so that a fault can still be answered."""
    file: BinaryIO = get_store().open(key)
    return read_chunks(file)
