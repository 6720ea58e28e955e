"""The output items of imported runs."""

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import delete, select
from sqlmodel import Session, col

from app.tables import EvalRun, ImportedEvalItem

# The words of exports, by those of the query.
ITEM_STATUSES = {"pass": ("pass", "passed"), "fail": ("fail", "failed")}


def list_items(
    session: Session,
    run: EvalRun,
    limit: int,
    after: int | None,
    status: str | None,
    *,
    descending: bool,
) -> tuple[Sequence[ImportedEvalItem], bool]:
    """Return a page of the items of a run after a position, and whether more follow."""
    position = col(ImportedEvalItem.position)
    statement = select(ImportedEvalItem).where(col(ImportedEvalItem.run_id) == run.id)
    if status is not None:
        statement = statement.where(col(ImportedEvalItem.status).in_(ITEM_STATUSES[status]))
    if after is not None:
        statement = statement.where(position < after if descending else position > after)
    statement = statement.order_by(position.desc() if descending else position)
    found = session.scalars(statement.limit(limit + 1)).all()
    return found[:limit], len(found) > limit


def get_item(session: Session, run: EvalRun, position: int) -> ImportedEvalItem | None:
    """Return an item of a run, if it has this one."""
    return session.get(ImportedEvalItem, (run.id, position))


def delete_items(session: Session, run_ids: Sequence[str]) -> None:
    """Delete the items of runs."""
    session.execute(delete(ImportedEvalItem).where(col(ImportedEvalItem.run_id).in_(run_ids)))


def read_object(text: str) -> dict[str, Any]:
    """Return an object as it was exported."""
    content: dict[str, Any] = msgspec.json.decode(text)
    return content
