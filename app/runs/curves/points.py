"""The points of a run's curves, in the order of its events, without the cost of rows as objects."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import select
from sqlmodel import Session, col

from app.runs.service import get_run
from app.tables import Event, EventType

# Of the newest events, as many are searched for log lines: a run may log metrics only.
MAX_SEARCHED_EVENTS = 20_000


class LoggedPoint(NamedTuple):
    """The values of one step."""

    seq: int
    step: int | None
    created_at: datetime
    values: dict[str, float | None]


def list_points(
    session: Session, run_id: str, after: int, limit: int
) -> tuple[list[LoggedPoint], int | None]:
    """Return the points after an event, and the number after which the next ones follow, or None."""
    get_run(session, run_id)
    statement = select(col(Event.seq), col(Event.step), col(Event.created_at), col(Event.data)).where(
        col(Event.run_id) == run_id, col(Event.seq) > after, col(Event.type) == EventType.metrics
    )
    rows = session.execute(statement.order_by(col(Event.seq)).limit(limit + 1)).all()
    points = [LoggedPoint(*row) for row in rows[:limit]]
    return points, points[-1].seq if len(rows) > limit else None


def list_last_lines(session: Session, run_id: str, limit: int) -> tuple[list[str], int]:
    """Return the last log lines of a run, and the number of its last event when they were read."""
    last = get_run(session, run_id).event_seq
    statement = select(col(Event.data)).where(
        col(Event.run_id) == run_id,
        col(Event.seq).between(last - MAX_SEARCHED_EVENTS, last),
        col(Event.type) == EventType.log,
    )
    events = session.scalars(statement.order_by(col(Event.seq).desc()).limit(limit)).all()
    lines = [line for data in reversed(events) for line in data["lines"]]
    return lines[-limit:], last


def list_new_events(session: Session, run_id: str, after: int, limit: int) -> Sequence[Event]:
    """Return the metrics and log lines after an event."""
    statement = select(Event).where(
        col(Event.run_id) == run_id,
        col(Event.seq) > after,
        col(Event.type).in_((EventType.metrics, EventType.log)),
    )
    return session.scalars(statement.order_by(col(Event.seq)).limit(limit)).all()
