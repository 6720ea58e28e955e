"""Events: append-only facts about a run."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlmodel import Field, SQLModel

from app.tables.base import Json, enum_type, time_field


class EventType(StrEnum):
    """What kind of fact an event is."""

    status = "status"
    progress = "progress"
    metrics = "metrics"
    log = "log"
    checkpoint = "checkpoint"
    resumed = "resumed"
    warning = "warning"


class Event(SQLModel, table=True):
    """A fact, numbered within its run.

    The number is taken by an UPDATE of the run's row, whose lock orders the writers: numbers
    become visible in order, so that a reader who asks for what follows the last never misses one.
    """

    __tablename__ = "event"

    run_id: str = Field(foreign_key="run.id", primary_key=True)
    seq: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    attempt: int
    type: EventType = Field(sa_type=enum_type(EventType))
    step: int | None = None
    data: dict[str, Any] = Field(default_factory=dict, sa_type=Json)
    created_at: datetime = time_field(default_now=True)
