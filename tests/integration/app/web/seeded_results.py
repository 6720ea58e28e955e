"""Checkpoints, evaluations, comparisons and samples, for tests and screenshots of the pages of results."""

import secrets
from datetime import timedelta

from app.storage.database import insert_rows, transaction
from app.tables import Checkpoint, Event, EventType, Model, ModelKind, Run
from app.tables.base import new_row, utc_now


def add_checkpoints(run: Run, count: int, *, every: int = 50, resumable: bool = True) -> list[Checkpoint]:
    """Insert checkpoints of a run, oldest first, with a validation loss at each of their steps."""
    begun = utc_now() - timedelta(minutes=count)
    rows: list[Checkpoint] = [
        new_row(
            Checkpoint,
            run_id=run.id,
            attempt=1,
            step=number * every,
            artifact=f"checkpoints/{run.id}/{number}",
            sha256=secrets.token_hex(32),
            size_bytes=413 * 2**20,
            resumable=resumable,
            created_at=begun + timedelta(minutes=number),
        )
        for number in range(1, count + 1)
    ]
    with transaction() as session:
        insert_rows(session, Checkpoint, [row.model_dump() for row in rows])
        stored = session.get_one(Run, run.id)
        for seq, row in enumerate(rows, stored.event_seq + 1):
            loss = 0.8 + abs(row.step - 0.7 * count * every) / (count * every)
            values = {"validation_loss": loss, "loss": loss - 0.05}
            session.add(
                Event(run_id=run.id, seq=seq, attempt=1, type=EventType.metrics, step=row.step, data=values)
            )
        stored.event_seq += count
        stored.step = count * every
    return rows


def add_model(run: Run) -> str:
    """Insert the model that a run has produced, and return its id."""
    model = Model(
        name=run.full_name or run.name,
        kind=ModelKind.adapter,
        base="starter",
        run_id=run.id,
        artifact=f"models/{run.id}",
        sha256=secrets.token_hex(32),
        size_bytes=1,
    )
    with transaction() as session:
        session.add(model)
        session.flush()
        session.get_one(Run, run.id).model_id = model.id
    return model.id


def add_results(runs: dict[str, list[Run]]) -> None:
    """Insert what the pages of results show of the jobs of `seeded_jobs.add_shown_jobs`."""
    add_checkpoints(runs["ko-en-news"][0], 1000, every=10)
