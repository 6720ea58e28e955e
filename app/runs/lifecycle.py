"""The life cycle of a run: the only writer of its status, by the table in `transitions.py`.

Every change is one guarded UPDATE that also takes the number of its event. A writer that holds a run
under a lease passes `lease_guards(attempt)`: the UPDATE then matches only while that attempt is the
current one and its lease has not ended by the database's clock. A worker that slept through its lease
therefore writes nothing.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select, update
from sqlmodel import Session, col

from app.aliases.promotions import end_promotion
from app.batches.run_end import end_batch
from app.runs import graph
from app.runs.attempt_outcome import AttemptOutcome, NewEvent, next_status
from app.runs.claimable import FreeResources, Precedence, order_queues, select_next
from app.runs.transitions import TRANSITIONS, explain_unstarted
from app.scheduling.queue import notify_after_commit
from app.storage.database import Rows, database_now, insert_rows
from app.tables import HELD, Event, EventType, Run, RunNeed, RunStatus
from app.tables.base import utc_now
from app.webhooks.outbox import note_run_end
from trainers.configs import Queue, StageKind
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import TunesmithError


class LeaseLost(TunesmithError):
    code = ErrorCode.lease_lost


class StaleAttempt(Exception):
    """An attempt that no longer holds the run: the worker must stop its program and write nothing."""


def create_runs(
    session: Session,
    runs: Sequence[Run],
    needs: Sequence[RunNeed],
    warnings: Mapping[str, Sequence[NewEvent]] | None = None,
    before: Rows | None = None,
) -> None:
    """Insert the runs of a new job, each with its event `queued`, and notify the queues of the first ones.

    `warnings` are further events by the id of the run, and `before` the rows that must exist before: the job.
    """
    events = {
        run.id: [NewEvent(EventType.status, {"status": run.status}), *(warnings or {}).get(run.id, ())]
        for run in runs
    }
    counts = Counter(need.run_id for need in needs)
    for run in runs:
        run.event_seq, run.unmet_needs = len(events[run.id]), counts[run.id]
    rows: Rows = {
        **(before or {}),
        Run: [run.model_dump() for run in runs],
        RunNeed: [need.model_dump() for need in needs],
        Event: [row for run in runs for row in _event_rows(run, events[run.id])],
    }
    # One statement for all tables is longer than those that psycopg remembers, and costs more than it saves.
    for table, of_table in rows.items():
        if of_table:
            insert_rows(session, table, of_table)
    for queue in dict.fromkeys(run.queue for run in runs if not run.unmet_needs):
        notify_after_commit(session, queue)


def claim(
    session: Session,
    worker_id: str,
    queues: Sequence[Queue],
    stages: Sequence[StageKind],
    lease_seconds: float,
    free: FreeResources | None = None,
    max_overtake_seconds: float | None = None,
    precedence: Precedence | None = None,
) -> Run | None:
    """Claim the first run, by priority and then age, that the worker can execute; None if there is none.

    A run that has waited for GPUs for longer than `max_overtake_seconds` is not overtaken any more by runs
    that need fewer: the worker keeps the GPUs that become free for it. None means no limit. With
    `precedence`, only runs ahead of that one are claimed on its queue.
    """
    for queue in order_queues(session, queues, stages, free):
        claimable = select_next(session, queue, stages, free, max_overtake_seconds, precedence)
        if (run := _claim_first(session, worker_id, claimable, lease_seconds)) is not None:
            return run
    return None


def claim_group(session: Session, run_id: str, worker_id: str, lease_seconds: float) -> Run | None:
    """Claim a run for the leader of the group that will execute it; None if it is not queued any more."""
    return _claim_first(session, worker_id, select(col(Run.id)).where(col(Run.id) == run_id), lease_seconds)


def move(
    session: Session,
    run_id: str,
    to: RunStatus,
    *,
    sources: Iterable[RunStatus] | None = None,
    guards: Sequence[ColumnElement[bool]] = (),
    values: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    events: Sequence[NewEvent] = (),
) -> Run | None:
    """Change a run's status and write the event; None if its current status does not allow the change.

    `sources` narrows the statuses from which to move, `guards` are further conditions (`lease_guards`),
    `values` are further columns, `data` is added to the event, and `events` are written before it. The runs
    that need this one follow: they become startable, or end as well.
    """
    run = _move(session, run_id, to, sources, guards, values, data, events)
    if run is not None:
        _handle_new_status(session, run)
    return run


def _move(
    session: Session,
    run_id: str,
    to: RunStatus,
    sources: Iterable[RunStatus] | None,
    guards: Sequence[ColumnElement[bool]] = (),
    values: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    events: Sequence[NewEvent] = (),
) -> Run | None:
    allowed = [status for status in (sources or RunStatus) if to in TRANSITIONS[status]]
    if not to.held:
        values = {"lease_expires_at": None, "worker_id": None, **(values or {})}
    if to.finished:
        values = {"finished_at": database_now(), **(values or {})}
    guards = [col(Run.id) == run_id, col(Run.status).in_(allowed), *guards]
    run = _update(session, guards, {"status": to, **(values or {})}, n_events=len(events) + 1)
    if run is None:
        return None
    if to.finished and run.stage is StageKind.promote:
        # In the same transaction, for each way in which a run ends: its worker, a cancellation, the sweeper.
        succeeded = to is RunStatus.succeeded
        ended = end_promotion(session, run.id, roll_back=not succeeded, succeeded=succeeded)
        data = {**(data or {}), **ended}
    _add_events(session, run, [*events, NewEvent(EventType.status, {"status": to, **(data or {})})])
    if to.finished:
        note_run_end(session, run)
        end_batch(session, run)
    return run


def lease_guards(attempt: int) -> list[ColumnElement[bool]]:
    """Return the conditions that this attempt holds the run: it is the current one, with a valid lease."""
    return [
        col(Run.attempt) == attempt,
        col(Run.status).in_(HELD),
        col(Run.lease_expires_at) > database_now(),
    ]


def append_events(
    session: Session,
    run_id: str,
    attempt: int,
    events: Sequence[NewEvent],
    values: dict[str, Any] | None = None,
) -> RunStatus:
    """Append events for the attempt that holds the run, update columns, and return the run's status.

    Raises StaleAttempt if the attempt no longer holds the run.
    """
    guards = [col(Run.id) == run_id, *lease_guards(attempt)]
    run = _update(session, guards, values or {}, n_events=len(events))
    if run is None:
        raise StaleAttempt(f"attempt {attempt} no longer holds {run_id}")
    _add_events(session, run, events)
    return run.status


def append_attempt_events(
    session: Session, run_id: str, attempt: int, events: Sequence[NewEvent], values: dict[str, Any]
) -> None:
    """Append events to an attempt without holding its lease, unless another attempt has started since."""
    guards = [col(Run.id) == run_id, col(Run.attempt) == attempt]
    run = _update(session, guards, values, n_events=len(events))
    if run is not None:
        _add_events(session, run, events)


def renew(session: Session, run_id: str, attempt: int, lease_seconds: float) -> RunStatus:
    """Extend the lease of the attempt that holds the run; raises StaleAttempt if it has ended."""
    return append_events(session, run_id, attempt, [], {"lease_expires_at": database_now(lease_seconds)})


def end_attempt(
    session: Session,
    run_id: str,
    end: AttemptOutcome,
    guards: Sequence[ColumnElement[bool]],
    max_failures: int,
    values: dict[str, Any] | None = None,
) -> Run | None:
    """Move a run whose attempt ended without a result; None if the guards no longer hold.

    | end of the attempt          | running                         | pausing  | cancelling  |
    | --------------------------- | ------------------------------- | -------- | ----------- |
    | stopped on request          | `queued`                        | `paused` | `cancelled` |
    | infrastructure error        | `queued`; after `max_failures`, | `paused` | `cancelled` |
    |                             | `failed`                        |          |             |
    | disk full                   | `queued` until there is room    | `paused` | `cancelled` |
    | out of memory, can use less | `queued` with `smaller_config`  | `paused` | `cancelled` |
    | any other error             | `failed`                        | `failed` | `cancelled` |

    The status in the database counts, not the worker's copy of it: it may have changed since the last
    poll, and the UPDATE is guarded by it.
    """
    run = session.get_one(Run, run_id, populate_existing=True)
    to, changes = next_status(run, end, max_failures)
    data: dict[str, Any] = {"error": end.error.as_dict()} if end.error is not None else {}
    if end.reason is not None and to is RunStatus.queued:
        data["reason"] = end.reason
    if to is RunStatus.failed:
        changes["handled"] = graph.is_handled(run.id, not_met=end.code is ErrorCode.gate_not_met)
    return move(
        session,
        run.id,
        to,
        sources=[run.status],
        guards=guards,
        values={**(values or {}), **changes},
        data=data,
        events=[end.warning] if end.warning is not None and "config" in changes else [],
    )


def release_expired(session: Session, max_failures: int) -> list[Run]:
    """End the attempts of workers that have not renewed their leases in time, and return their runs."""
    has_expired = col(Run.lease_expires_at) < database_now()
    released = []
    # In one order: two sweepers that locked the rows in different ones would block each other.
    expired = select(Run).where(col(Run.status).in_(HELD), has_expired).order_by(col(Run.id))
    for run in session.scalars(expired).all():
        error = LeaseLost(
            f"Worker {run.worker_id} stopped renewing its lease on attempt {run.attempt}.",
            "Check whether that worker's host is up.",
        )
        guards = [col(Run.attempt) == run.attempt, has_expired]
        released.append(end_attempt(session, run.id, AttemptOutcome(error), guards, max_failures))
    return [run for run in released if run is not None]


def _claim_first(
    session: Session, worker_id: str, claimable: Select[str], lease_seconds: float
) -> Run | None:
    # Workers that claim at the same time skip each other's rows. SQLite has no such clause and needs none:
    # it runs one writing transaction at a time.
    next_run = claimable.limit(1).with_for_update(of=Run, skip_locked=True).scalar_subquery()
    values = {
        "status": RunStatus.running,
        "attempt": col(Run.attempt) + 1,
        "worker_id": worker_id,
        "lease_expires_at": database_now(lease_seconds),
        "claimable_at": None,
        "needed_disk_bytes": None,
        "notified_at": None,
        "started_at": func.coalesce(Run.started_at, database_now()),
        "finished_at": None,
        "error": None,
    }
    run = _update(session, [col(Run.id) == next_run, col(Run.status) == RunStatus.queued], values, n_events=1)
    if run is not None:
        data = {"status": RunStatus.running, "worker_id": worker_id}
        _add_events(session, run, [NewEvent(EventType.status, data)])
    return run


def _update(
    session: Session, guards: Sequence[ColumnElement[bool]], values: dict[str, Any], n_events: int
) -> Run | None:
    statement = (
        update(Run)
        .where(*guards)
        .values(event_seq=col(Run.event_seq) + n_events, **values)
        .returning(Run)
        .execution_options(synchronize_session=False, populate_existing=True)
    )
    return session.scalars(statement).one_or_none()


def _add_events(session: Session, run: Run, events: Sequence[NewEvent]) -> None:
    """Insert events under the numbers that the UPDATE of the run's row has reserved."""
    if events:
        insert_rows(session, Event, _event_rows(run, events))


def _event_rows(run: Run, events: Sequence[NewEvent]) -> list[dict[str, Any]]:
    first = run.event_seq - len(events) + 1
    return [
        {
            "run_id": run.id,
            "seq": first + i,
            "attempt": run.attempt,
            "type": event.type,
            "step": event.step,
            "data": event.data,
            "created_at": utc_now(),
        }
        for i, event in enumerate(events)
    ]


def _handle_new_status(session: Session, run: Run) -> None:
    """Notify the queues of the runs that can start now, and end those that cannot start any more."""
    if run.status is RunStatus.queued:
        notify_after_commit(session, run.queue)
    needs = graph.load_needs(session, run.job_id) if run.status.finished else {}
    if not needs:
        return
    runs = session.scalars(select(Run).where(col(Run.job_id) == run.job_id).order_by(col(Run.position))).all()
    queues: list[Queue] = []
    for other, to in list(graph.find_effects(runs, needs, run)):
        if to is RunStatus.queued:
            # Two runs that end at once do not see each other, but each counts itself on the same row.
            counted = {"unmet_needs": col(Run.unmet_needs) - 1}
            waiting = _update(session, [col(Run.id) == other.id], counted, n_events=0)
            queues += [other.queue] if waiting is not None and not waiting.unmet_needs else []
        else:
            error = {"error": explain_unstarted(to, run).as_dict()}
            unstarted = [RunStatus.queued, RunStatus.paused]
            _move(session, other.id, to, unstarted, values=error, data=error)
    for queue in dict.fromkeys(queues):
        notify_after_commit(session, queue)
