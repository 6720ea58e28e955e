"""Evals in OpenAI's terms: the definition of an evaluation, and its runs, each of which is a job.

What was imported from OpenAI has ids of its own, and keeps its object as it was exported. A run that was
imported has no job: its results are those that OpenAI found.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import Text, UniqueConstraint
from sqlmodel import Field, SQLModel

from app.tables.base import Json, new_id, time_field


class Eval(SQLModel, table=True):
    """What items look like, and by what completions are judged."""

    __tablename__ = "eval"

    id: str = Field(default_factory=lambda: new_id("eval"), primary_key=True)
    name: str
    data_source_config: dict[str, Any] = Field(sa_type=Json)
    testing_criteria: list[dict[str, Any]] = Field(sa_type=Json)
    # `metadata` is an attribute of every table's class.
    custom: dict[str, str] = Field(default_factory=dict, sa_type=Json, description="The client's metadata.")
    created_at: datetime = time_field(default_now=True)
    updated_at: datetime = time_field(default_now=True)
    imported_id: str | None = Field(default=None, unique=True, description="Its id at OpenAI.")
    imported_object: str | None = Field(default=None, sa_type=Text, description="As it was exported.")


class EvalRun(SQLModel, table=True):
    """A run of an eval: a job whose one stage evaluates a model or existing responses, or an imported one."""

    __tablename__ = "eval_run"

    id: str = Field(default_factory=lambda: new_id("evalrun"), primary_key=True)
    eval_id: str = Field(foreign_key="eval.id", index=True)
    job_id: str | None = Field(default=None, foreign_key="job.id", index=True)
    name: str
    model: str = Field(
        default="", description="The model as the client named it; empty for existing responses."
    )
    data_source: dict[str, Any] = Field(
        sa_type=Json, description="As the client named it, with the first of its rows."
    )
    testing_criteria: list[dict[str, Any]] = Field(sa_type=Json, description="As they were when it began.")
    custom: dict[str, str] = Field(default_factory=dict, sa_type=Json, description="The client's metadata.")
    created_at: datetime = time_field(default_now=True)
    imported_id: str | None = Field(default=None, unique=True, description="Its id at OpenAI.")
    imported_status: str | None = Field(default=None, description="How it ended at OpenAI.")
    imported_results: dict[str, Any] | None = Field(
        default=None, sa_type=Json, description="Counts, usage and error, as they were exported."
    )
    imported_object: str | None = Field(default=None, sa_type=Text, description="As it was exported.")


class ImportedEvalItem(SQLModel, table=True):
    """An output item of an imported run."""

    __tablename__ = "imported_eval_item"
    __table_args__ = (UniqueConstraint("run_id", "imported_id"),)

    run_id: str = Field(foreign_key="eval_run.id", primary_key=True)
    position: int = Field(primary_key=True, description="Its place in the order of the export, from 0.")
    imported_id: str = Field(description="Its id at OpenAI.")
    status: str
    object: str = Field(sa_type=Text, description="As it was exported.")
