"""An older state of the database, which a simulation restores as `python -m app restore` does."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Table, delete, insert, select, update
from sqlmodel import SQLModel, col

from app.storage.database import read_session, transaction
from app.tables import CloudState, Run, Worker
from tests.integration.workers.cloud_hosts.simulated_cloud import SimulatedClock

Rows = list[tuple[Table, Sequence[dict[str, Any]]]]


def dump_database() -> Rows:
    """Return the rows of all tables, parents first."""
    with read_session() as session:
        return [
            (table, [dict(row) for row in session.execute(select(table)).mappings()])
            for table in SQLModel.metadata.sorted_tables
        ]


def restore_database(rows: Rows, clock: SimulatedClock, *, is_held: bool) -> None:
    """Replace all rows; no worker of the old state is alive. The hosts of clouds may be held."""
    with transaction() as session:
        for table, _ in reversed(rows):
            session.execute(delete(table))
        for table, content in rows:
            if content:
                session.execute(insert(table), content)
        held_at = clock.now if is_held else None
        session.execute(update(CloudState).values(held_at=held_at, worker_id=None, lease_expires_at=None))
        of_hosts = update(Worker).where(col(Worker.host_id).is_not(None))
        session.execute(of_hosts.values(stopped_at=clock.now))
        for run in session.scalars(select(Run).where(col(Run.worker_id).is_not(None))):
            run.status, run.worker_id = ("queued" if run.own_host else "cancelled"), None  # type: ignore[assignment]
