"""The events of a fine-tuning job in OpenAI's terms, derived from those of its run."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import select
from sqlmodel import Session, col

from app.fine_tuning.metrics import name_metrics
from app.fine_tuning.service import FineTuningState
from app.http.errors import field_error
from app.http.paging import CursorQuery
from app.tables import Event, EventType, RunStatus

SHOWN = (EventType.status, EventType.metrics, EventType.checkpoint, EventType.warning, EventType.resumed)
# Before the run's events, which are numbered from 1.
CREATED, CHOSEN = -1, 0
PREFIX = "ftevent"

STATUS_MESSAGES = {
    RunStatus.queued: "The job is queued.",
    RunStatus.running: "Fine-tuning job started; its files are being checked.",
    RunStatus.pausing: "The job saves a checkpoint and pauses.",
    RunStatus.paused: "The job is paused.",
    RunStatus.cancelling: "The job is being cancelled.",
    RunStatus.cancelled: "The job was cancelled.",
    RunStatus.failed: "The job failed.",
    RunStatus.skipped: "The job was skipped.",
}


class EventLevel(StrEnum):
    """The level of an event."""

    info = "info"
    warn = "warn"
    error = "error"


@dataclass(frozen=True)
class FineTuningEvent:
    """An event of a fine-tuning job."""

    id: str
    created_at: datetime
    level: EventLevel
    message: str
    data: dict[str, Any]
    is_metrics: bool = False


def list_events(
    session: Session, state: FineTuningState, cursor: CursorQuery, *, with_metrics: bool = True
) -> tuple[list[FineTuningEvent], bool]:
    """Return a page of events, newest first, and whether more follow; without metrics, only messages."""
    before = _read_number(state, cursor.after) if cursor.after is not None else 2**31 - 1
    types = [each for each in SHOWN if with_metrics or each is not EventType.metrics]
    statement = select(Event).where(
        col(Event.run_id) == state.run.id, col(Event.type).in_(types), col(Event.seq) < before
    )
    stored = session.scalars(statement.order_by(col(Event.seq).desc()).limit(cursor.limit + 1)).all()
    events = [_describe(state, event) for event in stored] + list(_describe_creation(state, before))
    return events[: cursor.limit], len(events) > cursor.limit


def _describe_creation(state: FineTuningState, before: int) -> Iterable[FineTuningEvent]:
    job = state.job
    values = job.method[job.method["type"]]["hyperparameters"]
    if before > CHOSEN:
        yield FineTuningEvent(
            _make_id(state, CHOSEN),
            job.created_at,
            EventLevel.info,
            job.explanation,
            {"hyperparameters": values},
        )
    if before > CREATED:
        message = f"Created fine-tuning job: {job.id}, which is our job {job.job_id}."
        yield FineTuningEvent(
            _make_id(state, CREATED), job.created_at, EventLevel.info, message, {"job_id": job.job_id}
        )


def _describe(state: FineTuningState, event: Event) -> FineTuningEvent:
    level, message, data = EventLevel.info, "", dict(event.data)
    if event.type is EventType.metrics:
        metrics = name_metrics(event.data)
        data = {"step": event.step, "total_steps": state.run.total_steps, **metrics}
        values = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in metrics.items())
        message = f"Step {event.step}/{state.run.total_steps}: {values}"
    elif event.type is EventType.checkpoint:
        message = f"Checkpoint created at step {event.step}."
    elif event.type is EventType.resumed:
        message = f"The job resumes after step {event.step}, {event.data['exactness']}."
    elif event.type is EventType.warning:
        level, message = EventLevel.warn, f"{event.data['code']}: {event.data['message']}"
    else:
        level, message = _describe_status(state, event)
    return FineTuningEvent(
        _make_id(state, event.seq), event.created_at, level, message, data, event.type is EventType.metrics
    )


def _describe_status(state: FineTuningState, event: Event) -> tuple[EventLevel, str]:
    status = RunStatus(event.data["status"])
    if status is RunStatus.succeeded:
        return EventLevel.info, f"The job has succeeded; its model is {state.job.fine_tuned_model}."
    error = event.data.get("error")
    message = f"{STATUS_MESSAGES[status]} {error['message']}" if error else STATUS_MESSAGES[status]
    level = EventLevel.error if status is RunStatus.failed else EventLevel.warn if error else EventLevel.info
    return level, message


def _make_id(state: FineTuningState, number: int) -> str:
    """Return the id of an event: that of its job, and its number, so that ids of a job sort by age."""
    return f"{PREFIX}-{_own_part(state)}{number + 1:010d}"


def _read_number(state: FineTuningState, event_id: str) -> int:
    start = f"{PREFIX}-{_own_part(state)}"
    number = event_id.removeprefix(start)
    if not event_id.startswith(start) or not (number.isascii() and number.isdigit() and len(number) == 10):
        raise field_error("after", f"{event_id!r} is not the id of an event of {state.job.id}.")
    return int(number) - 1


def _own_part(state: FineTuningState) -> str:
    return state.job.id.partition("-")[2]
