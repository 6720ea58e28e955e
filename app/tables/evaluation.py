"""Evaluations, the scores of one model on one dataset, and comparisons of them.

The evaluations of a run share the artifact of its rows.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Index, UniqueConstraint
from sqlmodel import Field, SQLModel

from app.tables.base import Json, new_id, time_field


class Evaluation(SQLModel, table=True):
    """The scores of one model of an `evaluate` run."""

    __tablename__ = "evaluation"
    __table_args__ = (UniqueConstraint("run_id", "role"),)

    id: str = Field(default_factory=lambda: new_id("evaluation"), primary_key=True)
    job_id: str = Field(foreign_key="job.id", index=True)
    run_id: str = Field(foreign_key="run.id")
    role: str = Field(description="Name of the model in the run, such as `model` or `baseline`.")
    model: str = Field(description="The model as a person reads it.")
    model_id: str | None = Field(default=None, index=True, description="Its id in the registry.")
    dataset_id: str | None = Field(default=None, index=True)
    dataset_sha256: str | None = None
    rows_sha256: str = Field(description="Hash of the prompts and references of all rows, in order.")
    metric: str = Field(description="Name of the main metric.")
    scores: list[dict[str, Any]] = Field(sa_type=Json)
    provenance: dict[str, Any] = Field(default_factory=dict, sa_type=Json)
    n: int
    artifact: str = Field(description="Key of the folder with the rows and the reports.")
    sha256: str = Field(description="Hash of the folder's manifest.")
    size_bytes: int = Field(sa_type=BigInteger)
    created_at: datetime = time_field(default_now=True)


class EvaluationScore(SQLModel, table=True):
    """A score of an evaluation, by which leaderboards and lists find it."""

    __tablename__ = "evaluation_score"
    __table_args__ = (Index("ix_evaluation_score_metric", "metric", "evaluation_id"),)

    evaluation_id: str = Field(foreign_key="evaluation.id", primary_key=True)
    metric: str = Field(primary_key=True)
    value: float
    signature: str
    higher_is_better: bool


class Comparison(SQLModel, table=True):
    """The result of a `compare` run."""

    __tablename__ = "comparison"

    id: str = Field(default_factory=lambda: new_id("comparison"), primary_key=True)
    job_id: str = Field(foreign_key="job.id", index=True)
    run_id: str = Field(foreign_key="run.id", unique=True)
    evaluations: list[str] = Field(sa_type=Json, description="Ids, the first one compared with the others.")
    n: int
    result: dict[str, Any] = Field(sa_type=Json)
    artifact: str = Field(description="Key of the folder with the rows and the reports.")
    sha256: str = Field(description="Hash of the folder's manifest.")
    size_bytes: int = Field(sa_type=BigInteger)
    created_at: datetime = time_field(default_now=True)
