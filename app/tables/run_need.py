"""Edges of a job's graph: the runs that a run needs, and how each of them must have ended."""

from sqlmodel import Field, SQLModel

from app.tables.base import enum_type
from app.tables.run import RunStatus


class RunNeed(SQLModel, table=True):
    """One run that another run of the same job needs; it is of an earlier stage, so there are no cycles."""

    __tablename__ = "run_need"

    run_id: str = Field(foreign_key="run.id", primary_key=True)
    needed_id: str = Field(foreign_key="run.id", primary_key=True, index=True)
    required_status: RunStatus = Field(
        default=RunStatus.succeeded,
        sa_type=enum_type(RunStatus),
        description="`succeeded`; or `failed`, for a stage that runs when a gate is not met.",
    )
