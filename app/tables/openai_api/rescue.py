"""Rescues: models at OpenAI that are trained again here and compared."""

from datetime import datetime
from typing import Any

from sqlmodel import Field, SQLModel

from app.tables.base import Json, new_id, time_field


class Rescue(SQLModel, table=True):
    """A fine-tuned model at OpenAI, the job that fetches its files, and the job that replaces it."""

    __tablename__ = "rescue"

    id: str = Field(default_factory=lambda: new_id("rescue"), primary_key=True)
    fine_tuned_model: str = Field(description="Name of the model at OpenAI.")
    created_by: str
    fetch_job_id: str | None = Field(default=None, description="Null only until its job is created.")
    start: dict[str, Any] | None = Field(
        default=None, sa_type=Json, description="The request that started it."
    )
    files: dict[str, str] = Field(
        default_factory=dict, sa_type=Json, description="Ids of our files by their role, once it was started."
    )
    fine_tuning_job_id: str | None = Field(default=None, description="Null until it is started.")
    job_id: str | None = Field(default=None, description="The job that trains, records and compares.")
    created_at: datetime = time_field(default_now=True)
