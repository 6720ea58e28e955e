"""The completions that a model has written while it was trained on its own completions, newest first."""

from collections.abc import Sequence
from datetime import datetime

from pydantic import BaseModel
from sqlalchemy import select
from sqlmodel import Session, col

from app.runs.service import get_run
from app.tables import Event, EventType


class TrainingSampleView(BaseModel):
    """A completion with the rewards that it got; long texts are cut, and the file `samples.jsonl` has all."""

    prompt: str
    completion: str
    reference: str | None = None
    rewards: dict[str, float | None] = {}
    total: float | None = None


class SampledStepView(BaseModel):
    """The samples of one step."""

    seq: int
    attempt: int
    step: int | None
    samples: list[TrainingSampleView]
    created_at: datetime


def list_samples(
    session: Session, run_id: str, before: int | None, limit: int
) -> tuple[Sequence[SampledStepView], int | None]:
    """Return the samples of steps before an event, newest first, and the `before` of the next page."""
    get_run(session, run_id)
    statement = select(Event).where(col(Event.run_id) == run_id, col(Event.type) == EventType.samples)
    if before is not None:
        statement = statement.where(col(Event.seq) < before)
    events = session.scalars(statement.order_by(col(Event.seq).desc()).limit(limit + 1)).all()
    views = [
        SampledStepView(
            **event.model_dump(include={"seq", "attempt", "step", "created_at"}),
            samples=event.data["samples"],
        )
        for event in events[:limit]
    ]
    return views, views[-1].seq if len(events) > limit else None
