"""The names of workers, for views that show who executes a run."""

from collections.abc import Iterable

from sqlalchemy import select
from sqlmodel import Session, col

from app.tables import Worker


def name_workers(session: Session, worker_ids: Iterable[str | None]) -> dict[str, str]:
    """Return the names of workers by their ids; those whose row was deleted are left out."""
    if not (wanted := set(filter(None, worker_ids))):
        return {}
    rows = session.execute(select(col(Worker.id), col(Worker.name)).where(col(Worker.id).in_(wanted)))
    return {row[0]: row[1] for row in rows}
