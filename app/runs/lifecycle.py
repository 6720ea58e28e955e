"""The life of a run: the only writer of its status.

    queued → running → succeeded | failed
    running → pausing → paused → queued           (pause, resume)
    running → cancelling → cancelled              (cancel)
    running → queued                              (lease lost, worker leaving, fault to be retried)
    running → paused → queued                     (disk full, until there is room)
    failed | cancelled → queued                   (retry)

Every change is one guarded UPDATE that also takes the number of the event telling of it. A writer
that holds a run under a lease passes its `attempt`: the UPDATE then matches only while that attempt
is the current one and its lease has not ended by the database's clock, so that a worker which slept
through its lease cannot write anything.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, exists, func, or_, select, true, update
from sqlalchemy.orm import aliased
from sqlmodel import Session, col

from app.scheduling.queue import notify_after_commit
from app.storage.database import database_now
from app.tables import HELD, Event, EventType, Run, RunStatus
from trainers.configs import Queue, StageKind
from trainers.runtime.error_codes import ErrorCode

TRANSITIONS: dict[RunStatus, frozenset[RunStatus]] = {
    RunStatus.queued: frozenset({RunStatus.running, RunStatus.paused, RunStatus.cancelled}),
    RunStatus.running: frozenset(
        {
            RunStatus.pausing,
            RunStatus.paused,
            RunStatus.cancelling,
            RunStatus.succeeded,
            RunStatus.failed,
            RunStatus.queued,
        }
    ),
    RunStatus.pausing: frozenset(
        {RunStatus.paused, RunStatus.cancelling, RunStatus.succeeded, RunStatus.failed}
    ),
    RunStatus.paused: frozenset({RunStatus.queued, RunStatus.cancelled}),
    # A program may end before it hears that it is cancelled: what it ended with stands.
    RunStatus.cancelling: frozenset({RunStatus.cancelled, RunStatus.succeeded, RunStatus.failed}),
    RunStatus.failed: frozenset({RunStatus.queued}),
    RunStatus.cancelled: frozenset({RunStatus.queued}),
    RunStatus.succeeded: frozenset(),
}


@dataclass(frozen=True)
class NewEvent:
    """An event that is yet to get its number."""

    type: EventType
    data: dict[str, Any]
    step: int | None = None


class StaleAttempt(Exception):
    """The run is no longer held by this attempt: the worker must stop its program and write nothing."""


def create_runs(session: Session, runs: Sequence[Run]) -> None:
    """Write a job's new runs, each with the event that it is queued, and ring for the first."""
    for run in runs:
        run.event_seq = 1
    session.add_all(runs)
    session.flush()
    for run in runs:
        _write(session, run, [NewEvent(EventType.status, {"status": run.status})])
    notify_after_commit(session, runs[0].queue)


def claim(
    session: Session,
    worker_id: str,
    queues: Sequence[Queue],
    stages: Sequence[StageKind],
    lease_seconds: float,
    free_gpus: int | None = None,
) -> Run | None:
    """Take the first run by priority, then age, that the worker can carry out; None when there is none."""
    while (run_id := session.scalar(select_claimable(queues, stages, free_gpus).limit(1))) is not None:
        run = move(
            session,
            run_id,
            RunStatus.running,
            sources=[RunStatus.queued],
            values={
                "attempt": col(Run.attempt) + 1,
                "worker_id": worker_id,
                "lease_expires_at": database_now(lease_seconds),
                "claimable_at": None,
                "notified_at": None,
                "started_at": func.coalesce(Run.started_at, database_now()),
                "finished_at": None,
                "error": None,
            },
            data={"worker_id": worker_id},
        )
        if run is not None:
            return run
    return None


def select_claimable(
    queues: Sequence[Queue], stages: Sequence[StageKind] = tuple(StageKind), free_gpus: int | None = None
) -> Select[str]:
    """Ids of the runs that could start now, in the order in which they should.

    With `free_gpus`, a run on `cuda` that asks for more is left to a larger host, or until they are free.
    """
    earlier = aliased(Run)
    waits = exists().where(
        col(earlier.job_id) == col(Run.job_id),
        col(earlier.position) < col(Run.position),
        col(earlier.status) != RunStatus.succeeded,
    )
    fits = (
        true() if free_gpus is None else or_(col(Run.queue) != Queue.cuda, col(Run.device_count) <= free_gpus)
    )
    return (
        select(col(Run.id))
        .where(
            fits,
            col(Run.status) == RunStatus.queued,
            col(Run.queue).in_(queues),
            col(Run.stage).in_(stages),
            or_(col(Run.claimable_at).is_(None), col(Run.claimable_at) <= database_now()),
            ~waits,
        )
        .order_by(col(Run.priority).desc(), col(Run.id))
    )


def move(
    session: Session,
    run_id: str,
    to: RunStatus,
    *,
    sources: Iterable[RunStatus] | None = None,
    guards: Sequence[ColumnElement[bool]] = (),
    values: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
) -> Run | None:
    """Change a run's status and write the event; None when the run is not where that is allowed.

    `sources` narrows the statuses from which to move, `guards` are further conditions (`held_by`),
    `values` further columns, and `data` goes into the event.
    """
    allowed = [status for status in (sources or RunStatus) if to in TRANSITIONS[status]]
    if not to.held:
        values = {"lease_expires_at": None, "worker_id": None, **(values or {})}
    if to.finished:
        values = {"finished_at": database_now(), **(values or {})}
    guards = [col(Run.status).in_(allowed), *guards]
    run = _update(session, run_id, guards, {"status": to, **(values or {})}, events=1)
    if run is None:
        return None
    _write(session, run, [NewEvent(EventType.status, {"status": to, **(data or {})})])
    _pass_on(session, run)
    return run


def lease_guards(attempt: int) -> list[ColumnElement[bool]]:
    """True while this attempt holds the run: it is the current one and its lease has not ended."""
    return [
        col(Run.attempt) == attempt,
        col(Run.status).in_(HELD),
        col(Run.lease_expires_at) > database_now(),
    ]


def append_events(
    session: Session,
    run_id: str,
    attempt: int,
    facts: Sequence[NewEvent],
    values: dict[str, Any] | None = None,
) -> RunStatus:
    """Append facts in the name of the attempt that holds the run and answer its status.

    Raises StaleAttempt when that attempt no longer holds it.
    """
    run = _update(session, run_id, lease_guards(attempt), values or {}, events=len(facts))
    if run is None:
        raise StaleAttempt(f"attempt {attempt} no longer holds {run_id}")
    _write(session, run, facts)
    return run.status


def append_attempt_events(
    session: Session, run_id: str, attempt: int, facts: Sequence[NewEvent], values: dict[str, Any]
) -> None:
    """Append events to an attempt without holding its lease, unless another attempt has begun since."""
    guards = [col(Run.attempt) == attempt]
    run = _update(session, run_id, guards, values, events=len(facts))
    if run is not None:
        _write(session, run, facts)


def renew(session: Session, run_id: str, attempt: int, lease_seconds: float) -> RunStatus:
    """Lengthen the lease of the attempt that holds the run; raises StaleAttempt when it has ended."""
    return append_events(session, run_id, attempt, [], {"lease_expires_at": database_now(lease_seconds)})


def give_up(
    session: Session,
    run: Run,
    error: dict[str, Any],
    guards: Sequence[ColumnElement[bool]],
    max_faults: int,
    values: dict[str, Any] | None = None,
) -> Run | None:
    """End an attempt that the machine failed; None when the guards no longer hold.

    A running run is queued again until it has had `max_faults` faults, then it fails with the error;
    one that was being cancelled or paused has now stopped, so that is what it becomes.
    """
    values = values or {}
    to = {RunStatus.cancelling: RunStatus.cancelled, RunStatus.pausing: RunStatus.paused}.get(run.status)
    if to is None and run.failure_count >= max_faults:
        to = RunStatus.failed
        values = {**values, "error": error}
    elif to is None:
        to = RunStatus.queued
        delay_seconds = 10.0 * run.failure_count
        claimable_at = database_now(delay_seconds) if delay_seconds else None
        values = {**values, "failure_count": run.failure_count + 1, "claimable_at": claimable_at}
    return move(
        session, run.id, to, sources=[run.status], guards=guards, values=values, data={"error": error}
    )


def release_expired(session: Session, max_faults: int) -> list[Run]:
    """Take runs away from workers that have not renewed in time, and answer what they became."""
    lapsed = col(Run.lease_expires_at) < database_now()
    released = []
    for run in session.scalars(select(Run).where(col(Run.status).in_(HELD), lapsed)).all():
        error = {
            "code": ErrorCode.lease_lost,
            "message": f"Worker {run.worker_id} stopped renewing its lease on attempt {run.attempt}.",
            "hint": "See whether that worker's host is up.",
        }
        guards = [col(Run.status) == run.status, col(Run.attempt) == run.attempt, lapsed]
        released.append(give_up(session, run, error, guards, max_faults))
    return [run for run in released if run is not None]


def is_waiting_for_room(run: Run) -> bool:
    """Whether a full disk has paused the run; what a person has paused has no error."""
    return run.status is RunStatus.paused and (run.error or {}).get("code") == ErrorCode.disk_full


def _update(
    session: Session, run_id: str, guards: Sequence[ColumnElement[bool]], values: dict[str, Any], events: int
) -> Run | None:
    statement = (
        update(Run)
        .where(col(Run.id) == run_id, *guards)
        .values(event_seq=col(Run.event_seq) + events, **values)
        .returning(Run)
        .execution_options(synchronize_session=False, populate_existing=True)
    )
    return session.scalars(statement).one_or_none()


def _write(session: Session, run: Run, facts: Sequence[NewEvent]) -> None:
    """Add events under the numbers that the UPDATE of the run's row has taken."""
    first = run.event_seq - len(facts) + 1
    session.add_all(
        Event(
            run_id=run.id, seq=first + i, attempt=run.attempt, type=fact.type, step=fact.step, data=fact.data
        )
        for i, fact in enumerate(facts)
    )


def _pass_on(session: Session, run: Run) -> None:
    """What a run's new status means for its queue and for the job's next run."""
    if run.status is RunStatus.queued:
        notify_after_commit(session, run.queue)
    if not run.status.finished:
        return
    following = session.scalars(
        select(Run).where(col(Run.job_id) == run.job_id, col(Run.position) == run.position + 1)
    ).one_or_none()
    if following is None:
        return
    if run.status is RunStatus.succeeded:
        notify_after_commit(session, following.queue)
        return
    error = {
        "code": ErrorCode.earlier_stage_ended,
        "message": f"The stage before it, {run.name!r}, is {run.status}.",
        "hint": "Retry the job to run both.",
    }
    move(session, following.id, RunStatus.cancelled, values={"error": error}, data={"error": error})
