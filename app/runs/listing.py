"""Lists of runs, whose cost does not depend on the number of runs."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import Query
from pydantic import BaseModel
from sqlalchemy import ColumnElement, select
from sqlmodel import Session, col

from app.http.paging import PageQuery, paginate_newest_first
from app.tables import Run, RunStatus
from trainers.configs import Queue, StageKind

ID = r"^[a-z]+_[0-9a-z]{26}$"


class RunFilters(BaseModel):
    """The query of a list of runs; a run must match all filters that are given."""

    status: RunStatus | None = None
    stage: StageKind | None = None
    queue: Queue | None = None
    job_id: str | None = None
    worker_id: str | None = None


def run_filters(
    status: Annotated[RunStatus | None, Query(description="Return only runs with this status.")] = None,
    stage: Annotated[StageKind | None, Query(description="Return only runs of this kind of stage.")] = None,
    queue: Annotated[Queue | None, Query(description="Return only runs for this hardware.")] = None,
    job_id: Annotated[str | None, Query(pattern=ID, description="Return only runs of this job.")] = None,
    worker_id: Annotated[
        str | None, Query(pattern=ID, description="Return only runs that this worker executes now.")
    ] = None,
) -> RunFilters:
    """Return the filters of a request."""
    return RunFilters(status=status, stage=stage, queue=queue, job_id=job_id, worker_id=worker_id)


def list_runs(session: Session, paging: PageQuery, filters: RunFilters) -> tuple[Sequence[Run], str | None]:
    """Return a page of the runs that match all filters, newest first."""
    conditions: list[ColumnElement[bool]] = [
        getattr(Run, name) == value for name, value in filters.model_dump(exclude_none=True).items()
    ]
    return paginate_newest_first(session, select(Run).where(*conditions), col(Run.id), paging)
