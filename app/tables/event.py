"""Events: append-only facts about a run."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Index, text
from sqlmodel import Field, SQLModel

from app.tables.base import Json, enum_type, time_field


class EventType(StrEnum):
    """The kind of an event."""

    status = "status"
    progress = "progress"
    metrics = "metrics"
    log = "log"
    samples = "samples"
    checkpoint = "checkpoint"
    resumed = "resumed"
    warning = "warning"
    promotion = "promotion"


_IS_WARNING = text("type = 'warning'")


class Event(SQLModel, table=True):
    """An event, numbered within its run.

    The number comes from an UPDATE of the run's row, whose lock orders the writers: numbers become visible
    in order, so a reader that asks for the events after the last one it has never misses any.
    """

    __tablename__ = "event"
    __table_args__ = (
        # A long run has many thousands of events and few warnings, which every view of its job shows.
        Index("ix_event_warning", "run_id", "seq", sqlite_where=_IS_WARNING, postgresql_where=_IS_WARNING),
    )

    run_id: str = Field(foreign_key="run.id", primary_key=True)
    seq: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    attempt: int
    type: EventType = Field(sa_type=enum_type(EventType))
    step: int | None = None
    data: dict[str, Any] = Field(default_factory=dict, sa_type=Json)
    created_at: datetime = time_field(default_now=True)
