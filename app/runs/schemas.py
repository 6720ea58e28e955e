"""What the run endpoints give."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from app.tables import Event, EventType, Run, RunStatus, TrackingService
from trainers.configs import Queue, StageKind
from trainers.configs.resume_guarantee import ResumeGuarantee, get_resume_guarantee
from trainers.runtime.error_codes import ErrorCode


class RunErrorView(BaseModel):
    """Why a run failed or was ended."""

    code: ErrorCode
    message: str
    hint: str | None = None


class TrackingLinkView(BaseModel):
    """The run as a tracking service has it; this API keeps all metrics in any case."""

    service: TrackingService
    run_id: str = Field(description="The run's id in that service; in TensorBoard, its folder.")
    url: str | None = Field(description="Where to open it; `file:` is a folder of the worker's host.")
    step: int | None = Field(description="The last step whose metrics have arrived there.")


class RunView(BaseModel):
    """One stage being carried out."""

    id: str
    job_id: str
    position: int
    name: str
    stage: StageKind
    queue: Queue
    priority: int
    status: RunStatus
    waiting_for: str | None = Field(
        description="What a queued run waits for; null when it is about to start."
    )
    error: RunErrorView | None
    attempt: int
    failure_count: int = Field(description="Times that the machine failed it since its last checkpoint.")
    step: int
    total_steps: int | None
    progress: float = Field(description="From 0 to 1.")
    eta_seconds: float | None = Field(description="Estimate of the time left.")
    worker_id: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    config: dict[str, Any]
    result: dict[str, Any] | None
    model_id: str | None = Field(description="The registry model that the run made.")
    resume_guarantee: ResumeGuarantee | None = Field(
        description="How it goes on after a stop, and why if not exactly; an event `resumed` tells how it "
        "did. Null for a stage that begins again."
    )
    log_published: bool = Field(description="Whether the whole log can be downloaded.")
    tracking: list[TrackingLinkView] = Field(description="The same run in MLflow, W&B and TensorBoard.")


class EventView(BaseModel):
    """A fact about a run."""

    model_config = ConfigDict(from_attributes=True)

    seq: int
    attempt: int
    type: EventType
    step: int | None
    data: dict[str, Any]
    created_at: datetime


class MetricsView(BaseModel):
    """Numbers of one step."""

    seq: int
    attempt: int
    step: int | None
    values: dict[str, float | None] = Field(description="A value that was not finite is null.")
    created_at: datetime


class LogView(BaseModel):
    """Lines that the program wrote within about a second."""

    seq: int
    attempt: int
    lines: list[str]
    created_at: datetime


class CheckpointView(BaseModel):
    """A resumable state of a run."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    attempt: int
    step: int
    sha256: str
    size_bytes: int
    created_at: datetime


def run_view(run: Run, waiting_for: str | None) -> RunView:
    """A run as the API shows it."""
    return RunView(
        **run.model_dump(
            exclude={"lease_expires_at", "claimable_at", "notified_at", "event_seq", "seconds_per_step"}
        ),
        waiting_for=waiting_for,
        progress=progress(run),
        eta_seconds=_eta_seconds(run),
        resume_guarantee=get_resume_guarantee(run.stage, run.queue, run.config),
        log_published=run.log_artifact is not None,
    )


def metrics_view(event: Event) -> MetricsView:
    """A metrics event as the API shows it."""
    return MetricsView(**event.model_dump(exclude={"type", "data"}), values=event.data)


def log_view(event: Event) -> LogView:
    """A log event as the API shows it."""
    return LogView(**event.model_dump(exclude={"type", "data", "step"}), lines=event.data["lines"])


def progress(run: Run) -> float:
    """Share of the steps that are done."""
    if run.status is RunStatus.succeeded:
        return 1.0
    return min(1.0, run.step / run.total_steps) if run.total_steps else 0.0


def _eta_seconds(run: Run) -> float | None:
    if not run.status.held or not run.total_steps or run.seconds_per_step is None:
        return None
    return round(max(0, run.total_steps - run.step) * run.seconds_per_step, 1)
