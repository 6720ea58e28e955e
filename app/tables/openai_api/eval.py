"""Evals in OpenAI's terms: the definition of an evaluation, and its runs, each of which is a job."""

from datetime import datetime
from typing import Any

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


class EvalRun(SQLModel, table=True):
    """A run of an eval: a job whose one stage evaluates a model, or responses that exist already."""

    __tablename__ = "eval_run"

    id: str = Field(default_factory=lambda: new_id("evalrun"), primary_key=True)
    eval_id: str = Field(foreign_key="eval.id", index=True)
    job_id: str = Field(foreign_key="job.id", index=True)
    name: str
    model: str = Field(
        default="", description="The model as the client named it; empty for existing responses."
    )
    data_source: dict[str, Any] = Field(sa_type=Json)
    testing_criteria: list[dict[str, Any]] = Field(sa_type=Json, description="As they were when it began.")
    custom: dict[str, str] = Field(default_factory=dict, sa_type=Json, description="The client's metadata.")
    created_at: datetime = time_field(default_now=True)
