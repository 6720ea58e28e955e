"""Fine-tuning jobs of clients of the OpenAI API, each a job of ours, with their checkpoints."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger
from sqlmodel import Field, SQLModel

from app.tables.base import Json, new_id, time_field


class FineTuningJob(SQLModel, table=True):
    """A job with one training stage, as a client of the OpenAI API has requested it."""

    __tablename__ = "fine_tuning_job"

    id: str = Field(default_factory=lambda: new_id("ftjob", "-"), primary_key=True)
    job_id: str = Field(foreign_key="job.id", unique=True, description="The job that carries it out.")
    model: str = Field(description="The model that the client named.")
    base: str = Field(description="Hub id, folder or registry id of the model that is trained.")
    base_name: str = Field(description="Name of the base in the names of the trained models.")
    training_file: str
    validation_file: str | None = None
    suffix: str | None = None
    seed: int = Field(sa_type=BigInteger)
    method: dict[str, Any] = Field(
        sa_type=Json, description="OpenAI's `method`, with a number for each hyperparameter."
    )
    explanation: str = Field(description="How the hyperparameters were chosen.")
    integrations: list[dict[str, Any]] = Field(default_factory=list, sa_type=Json)
    client_metadata: dict[str, str] = Field(default_factory=dict, sa_type=Json)
    engine: dict[str, Any] = Field(sa_type=Json, description="Engine of the trained models, and its options.")
    organization: str
    fine_tuned_model: str = Field(unique=True, description="Name that the trained model gets.")
    result_file_id: str | None = None
    created_at: datetime = time_field(default_now=True)


class FineTuningCheckpoint(SQLModel, table=True):
    """A checkpoint of a succeeded fine-tuning job, which is a model of the registry."""

    __tablename__ = "fine_tuning_checkpoint"

    id: str = Field(default_factory=lambda: new_id("ftckpt"), primary_key=True)
    fine_tuning_job_id: str = Field(foreign_key="fine_tuning_job.id", index=True)
    step: int
    name: str = Field(unique=True, description="Name of the model in requests.")
    model_id: str
    metrics: dict[str, Any] = Field(sa_type=Json)
    created_at: datetime = time_field(default_now=True)


class CheckpointPermission(SQLModel, table=True):
    """The permission of a project to use a fine-tuned model."""

    __tablename__ = "checkpoint_permission"

    id: str = Field(default_factory=lambda: new_id("cp"), primary_key=True)
    model_name: str = Field(index=True, description="Name of a fine-tuned model or of a checkpoint.")
    project_id: str
    created_at: datetime = time_field(default_now=True)
