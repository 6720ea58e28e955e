"""The responses of OpenAI's Fine-tuning API."""

import time
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from app.fine_tuning.events import EventLevel, FineTuningEvent
from app.fine_tuning.service import FineTuningState
from app.runs.schemas import eta_seconds
from app.tables import CheckpointPermission, FineTuningCheckpoint, Run, RunStatus

FineTuningJobId = Annotated[str, Field(max_length=64, description="Id of a fine-tuning job, `ftjob-…`.")]
JobStatus = Literal[
    "validating_files", "queued", "running", "pausing", "paused", "succeeded", "failed", "cancelled"
]
STATUSES: dict[RunStatus, JobStatus] = {
    RunStatus.queued: "queued",
    RunStatus.running: "running",
    RunStatus.pausing: "pausing",
    RunStatus.paused: "paused",
    RunStatus.succeeded: "succeeded",
    RunStatus.failed: "failed",
    # Its program is being stopped, which cannot be undone.
    RunStatus.cancelling: "cancelled",
    RunStatus.cancelled: "cancelled",
    RunStatus.skipped: "cancelled",
}
# The parameter that an error of the run is about.
ERROR_PARAMETERS = {
    "dataset_invalid": "training_file",
    "dataset_not_found": "training_file",
    "preflight_failed": "training_file",
    "model_not_found": "model",
    "model_refused": "model",
    "model_unsupported": "model",
}


class FineTuningError(BaseModel):
    """Why a job failed."""

    code: str = Field(description="A code of the published list.")
    message: str = Field(description="What went wrong, and what to do.")
    param: str | None = Field(description="The parameter that is wrong, if it is one.")


class FineTuningJobObject(BaseModel):
    """A fine-tuning job."""

    id: FineTuningJobId
    object: Literal["fine_tuning.job"] = Field(description="Always `fine_tuning.job`.")
    created_at: int = Field(description="Unix time of its creation.")
    error: FineTuningError | None = Field(description="Why it failed.")
    fine_tuned_model: str | None = Field(description="Name of the trained model once the job has succeeded.")
    finished_at: int | None = Field(description="Unix time of its end.")
    hyperparameters: dict[str, int | float] = Field(description="The numbers that were given or chosen.")
    model: str = Field(description="The model that the request named.")
    organization_id: str = Field(description="Name of the organization of this service.")
    result_files: list[str] = Field(description="Id of the CSV file with the metrics of each step.")
    seed: int = Field(description="Seed of the random choices.")
    status: JobStatus = Field(description="State of the job.")
    trained_tokens: int | None = Field(description="Tokens of all steps once the job has succeeded.")
    training_file: str = Field(description="Id of the file with the rows.")
    validation_file: str | None = Field(description="Id of the file with the validation rows.")
    estimated_finish: int | None = Field(description="Unix time at which the last step is expected.")
    integrations: list[dict[str, Any]] = Field(description="Tracking services of the job.")
    metadata: dict[str, str] | None = Field(description="Pairs that the request has set.")
    method: dict[str, Any] = Field(description="The method, with a number for each hyperparameter.")
    base: str = Field(description="The model that is trained; not in OpenAI's API.")
    job: str = Field(description="Id of the job for Tunesmith's own API; not in OpenAI's API.")


class FineTuningEventObject(BaseModel):
    """An event of a fine-tuning job."""

    id: str = Field(description="Id of the event, `ftevent-…`.")
    object: Literal["fine_tuning.job.event"] = Field(description="Always `fine_tuning.job.event`.")
    created_at: int = Field(description="Unix time of the event.")
    level: EventLevel = Field(description="Level of the event.")
    message: str = Field(description="What happened.")
    data: dict[str, Any] = Field(description="Values of the event.")
    type: Literal["message", "metrics"] = Field(description="Kind of the event.")


class FineTuningCheckpointObject(BaseModel):
    """A checkpoint of a fine-tuning job."""

    id: str = Field(description="Id of the checkpoint, `ftckpt_…`.")
    object: Literal["fine_tuning.job.checkpoint"] = Field(description="Always `fine_tuning.job.checkpoint`.")
    created_at: int = Field(description="Unix time at which it became a model.")
    fine_tuned_model_checkpoint: str = Field(description="Name of the checkpoint's model in requests.")
    fine_tuning_job_id: FineTuningJobId
    metrics: dict[str, float] = Field(description="Metrics at its step, under OpenAI's names.")
    step_number: int = Field(description="The step after which it was saved.")
    model: str = Field(description="Id of its model in the registry; not in OpenAI's API.")


class CheckpointPermissionObject(BaseModel):
    """The permission of a project to use a fine-tuned model."""

    id: str = Field(description="Id of the permission, `cp_…`.")
    object: Literal["checkpoint.permission"] = Field(description="Always `checkpoint.permission`.")
    created_at: int = Field(description="Unix time of its creation.")
    project_id: str = Field(description="Id of the project.")


class CheckpointPermissionDeleted(BaseModel):
    """The response to a deletion."""

    id: str = Field(description="Id of the permission.")
    object: Literal["checkpoint.permission"] = Field(description="Always `checkpoint.permission`.")
    deleted: bool = Field(description="Always true.")


def view_job(state: FineTuningState) -> FineTuningJobObject:
    """Return a fine-tuning job in OpenAI's shape."""
    job, run = state.job, state.run
    has_succeeded = run.status is RunStatus.succeeded
    metrics = (run.result or {}).get("metrics", {})
    return FineTuningJobObject(
        id=job.id,
        object="fine_tuning.job",
        created_at=int(job.created_at.timestamp()),
        error=_view_error(run),
        fine_tuned_model=job.fine_tuned_model if has_succeeded else None,
        finished_at=int(run.finished_at.timestamp()) if run.finished_at else None,
        hyperparameters=job.method[job.method["type"]]["hyperparameters"],
        model=job.model,
        organization_id=job.organization,
        result_files=[job.result_file_id] if job.result_file_id else [],
        seed=job.seed,
        status=view_status(run),
        trained_tokens=int(metrics["tokens"]) if has_succeeded and "tokens" in metrics else None,
        training_file=job.training_file,
        validation_file=job.validation_file,
        estimated_finish=_estimate_finish(run),
        integrations=job.integrations,
        metadata=job.client_metadata or None,
        method=job.method,
        base=job.base,
        job=job.job_id,
    )


def view_event(event: FineTuningEvent) -> FineTuningEventObject:
    """Return an event in OpenAI's shape."""
    return FineTuningEventObject(
        id=event.id,
        object="fine_tuning.job.event",
        created_at=int(event.created_at.timestamp()),
        level=event.level,
        message=event.message,
        data=event.data,
        type="metrics" if event.is_metrics else "message",
    )


def view_checkpoint(checkpoint: FineTuningCheckpoint) -> FineTuningCheckpointObject:
    """Return a checkpoint in OpenAI's shape."""
    return FineTuningCheckpointObject(
        id=checkpoint.id,
        object="fine_tuning.job.checkpoint",
        created_at=int(checkpoint.created_at.timestamp()),
        fine_tuned_model_checkpoint=checkpoint.name,
        fine_tuning_job_id=checkpoint.fine_tuning_job_id,
        metrics=checkpoint.metrics,
        step_number=checkpoint.step,
        model=checkpoint.model_id,
    )


def view_permission(permission: CheckpointPermission) -> CheckpointPermissionObject:
    """Return a permission in OpenAI's shape."""
    return CheckpointPermissionObject(
        id=permission.id,
        object="checkpoint.permission",
        created_at=int(permission.created_at.timestamp()),
        project_id=permission.project_id,
    )


def view_status(run: Run) -> JobStatus:
    """Return the status of a fine-tuning job in OpenAI's terms."""
    # Until the program reports its steps, it reads and checks the rows.
    if run.status is RunStatus.running and run.total_steps is None:
        return "validating_files"
    return STATUSES[run.status]


def _view_error(run: Run) -> FineTuningError | None:
    if run.error is None or run.status is not RunStatus.failed:
        return None
    message = f"{run.error['message']} {run.error.get('hint') or ''}".strip()
    code = run.error["code"]
    return FineTuningError(code=code, message=message, param=ERROR_PARAMETERS.get(code))


def _estimate_finish(run: Run) -> int | None:
    seconds = eta_seconds(run) if run.status is RunStatus.running else None
    return None if seconds is None else round(time.time() + seconds)
