"""Batches: files of requests whose responses become files. Only `batches/lifecycle.py` changes a row."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlmodel import Field, SQLModel

from app.tables.base import Json, enum_type, new_id, time_field
from trainers.configs import BatchEndpoint


class BatchStatus(StrEnum):
    """The state of a batch, in OpenAI's terms."""

    validating = "validating"
    failed = "failed"
    in_progress = "in_progress"
    finalizing = "finalizing"
    completed = "completed"
    expired = "expired"
    cancelling = "cancelling"
    cancelled = "cancelled"

    @property
    def finished(self) -> bool:
        """Whether the batch has ended."""
        return self in {
            BatchStatus.failed,
            BatchStatus.completed,
            BatchStatus.expired,
            BatchStatus.cancelled,
        }


# The status follows from the latest of these times: each end first, then the steps from the last one.
STATUS_TIMES = (
    BatchStatus.completed,
    BatchStatus.expired,
    BatchStatus.failed,
    BatchStatus.cancelled,
    BatchStatus.cancelling,
    BatchStatus.finalizing,
    BatchStatus.in_progress,
)


class Batch(SQLModel, table=True):
    """A file of requests, each sent to the engine of its model by the one run of the batch's job."""

    __tablename__ = "batch"

    id: str = Field(default_factory=lambda: new_id("batch"), primary_key=True)
    job_id: str | None = Field(
        default=None, foreign_key="job.id", index=True, description="Null only until its job is created."
    )
    run_id: str | None = Field(default=None, foreign_key="run.id", index=True)
    endpoint: BatchEndpoint = Field(sa_type=enum_type(BatchEndpoint))
    input_file_id: str = Field(index=True, description="The file may be deleted once the batch has ended.")
    completion_window: str
    output_expires_seconds: int | None = Field(
        default=None, description="Age at which the files of responses and errors are deleted."
    )
    client_metadata: dict[str, str] | None = Field(default=None, sa_type=Json)

    model: str | None = Field(default=None, description="The model of the first request.")
    total: int = 0
    completed: int = 0
    failed: int = 0
    usage: dict[str, Any] | None = Field(default=None, sa_type=Json)
    errors: list[dict[str, Any]] | None = Field(
        default=None, sa_type=Json, description="Faults of the input file."
    )
    output_file_id: str | None = None
    error_file_id: str | None = None

    created_at: datetime = time_field(default_now=True)
    expires_at: datetime | None = time_field()
    in_progress_at: datetime | None = time_field()
    finalizing_at: datetime | None = time_field()
    completed_at: datetime | None = time_field()
    failed_at: datetime | None = time_field()
    expired_at: datetime | None = time_field()
    cancelling_at: datetime | None = time_field()
    cancelled_at: datetime | None = time_field()

    @property
    def status(self) -> BatchStatus:
        """The status, which follows from the times."""
        reached = (status for status in STATUS_TIMES if getattr(self, f"{status}_at") is not None)
        return next(reached, BatchStatus.validating)
