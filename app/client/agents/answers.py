"""What the tools return: short, and with what the next step needs."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from app.client.views.datasets import DataReport
from app.client.views.evaluations import DifferenceRecord, ScoreRecord
from app.client.views.jobs import JobPlan, PlannedStage, RemoteJob
from app.client.views.models import RemoteDeployment
from app.client.views.runs import RemoteRun
from trainers.data.faults import share_by_code

MAX_FINDINGS = 40
MAX_VALUE_CHARACTERS = 200


class ToolAnswer(BaseModel):
    """A structured result; `next` names the tools that usually follow, with their arguments."""

    model_config = ConfigDict(extra="forbid")

    next: list[str] = Field(default_factory=list)


class FileFinding(BaseModel):
    """A fault or a warning of a row."""

    row: int | None
    file_line: int | None = Field(description="Line of a CSV file in which the row begins.")
    field: str | None
    code: str
    message: str


class FileAnswer(ToolAnswer):
    """The report of a file."""

    trainable: bool
    format: str | None
    rows: int
    valid_rows: int
    fault_counts: dict[str, int]
    faults: list[FileFinding]
    warning_counts: dict[str, int]
    warnings: list[FileFinding]
    dataset: str | None = Field(None, description="Name for jobs, once it is stored.")
    dataset_id: str | None = None


class LinesAnswer(ToolAnswer):
    """Lines of a file as they are."""

    lines: dict[int, str]
    total_lines: int


class DatasetRows(ToolAnswer):
    """Rows of a dataset."""

    name: str
    format: str | None
    row_count: int
    rows: list[dict[str, Any]]


class RepairAnswer(ToolAnswer):
    """The file that a repair has written."""

    path: str
    rows: int
    removed_rows: dict[int, str] = Field(description="The first 200, with the reason for each.")
    removed_count: int
    report: FileAnswer


class StagePlanAnswer(BaseModel):
    """What a stage will do."""

    name: str
    stage: str
    queue: str
    why_this_queue: str
    steps: int | None
    resume: str | None
    waiting_for: str | None
    warnings: list[str]


class PlanAnswer(ToolAnswer):
    """The plan for a job, with nothing started."""

    stages: list[StagePlanAnswer]


class StageAnswer(BaseModel):
    """The state of one stage of a job."""

    name: str
    stage: str
    run_id: str
    status: str
    progress: float
    step: int
    total_steps: int | None
    eta_seconds: float | None
    waiting_for: str | None
    metrics: dict[str, float]
    model_id: str | None
    result: dict[str, Any] | None
    error: dict[str, Any] | None


class JobAnswer(ToolAnswer):
    """The state of a job."""

    job_id: str
    name: str
    status: str
    finished: bool
    stages: list[StageAnswer]
    warnings: list[str]
    error: dict[str, Any] | None


class LogAnswer(ToolAnswer):
    """The end of a log."""

    run_id: str
    lines: list[str]


class ScoresAnswer(ToolAnswer):
    """Scores of models on the same rows, and their paired differences."""

    n: int
    scores: dict[str, list[ScoreRecord]]
    differences: list[DifferenceRecord]
    changed_rows: list[dict[str, Any]]
    warnings: list[str]


class DeploymentAnswer(ToolAnswer):
    """A model that is served."""

    deployment_id: str
    name: str
    status: str
    engine: str
    model_id: str | None
    parity: dict[str, Any] | None
    waiting_for: str | None
    error: dict[str, Any] | None


class ChatAnswer(ToolAnswer):
    """What each model said to the same messages."""

    replies: dict[str, str]


class ListAnswer(ToolAnswer):
    """Objects of one kind, newest first."""

    items: list[dict[str, Any]]
    more: bool


class DownloadAnswer(ToolAnswer):
    """Where the files are."""

    path: str


class DoneAnswer(ToolAnswer):
    """What was done."""

    done: str


def describe_report(report: DataReport, next_steps: list[str], **stored: str) -> FileAnswer:
    """Return the report of a file with the first findings of each code."""

    def list_findings(found: list[Any]) -> list[FileFinding]:
        return [
            FileFinding(
                row=one.line, file_line=one.file_line, field=one.field, code=one.code, message=one.message
            )
            for one in share_by_code(found, MAX_FINDINGS)
        ]

    return FileAnswer(
        trainable=report.trainable,
        format=report.format,
        rows=report.row_count,
        valid_rows=report.valid_row_count,
        fault_counts=report.fault_counts,
        faults=list_findings(report.faults),
        warning_counts=report.warning_counts,
        warnings=list_findings(report.warnings),
        next=next_steps,
        **stored,
    )


def describe_plan(plan: JobPlan, next_steps: list[str]) -> PlanAnswer:
    """Return what each stage will do."""
    return PlanAnswer(stages=[_describe_planned(stage) for stage in plan.stages], next=next_steps)


def _describe_planned(stage: PlannedStage) -> StagePlanAnswer:
    return StagePlanAnswer(
        name=stage.name,
        stage=stage.stage,
        queue=stage.queue,
        why_this_queue=stage.queue_reason,
        steps=stage.estimated_steps,
        resume=(stage.resume_guarantee or {}).get("exactness"),
        waiting_for=stage.waiting_for,
        warnings=stage.warnings,
    )


def describe_job(job: RemoteJob[Any], next_steps: list[str]) -> JobAnswer:
    """Return the state of a job and of its stages."""
    return JobAnswer(
        job_id=job.id,
        name=job.name,
        status=job.status,
        finished=job.finished,
        stages=[_describe_run(run) for run in job.runs],
        warnings=[f"{one.run}: {one.message}" for one in job.warnings],
        error=job.error.model_dump(exclude_none=True) if job.error else None,
        next=next_steps,
    )


def _describe_run(run: RemoteRun[Any]) -> StageAnswer:
    return StageAnswer(
        name=run.name,
        stage=run.stage,
        run_id=run.id,
        status=run.status,
        progress=run.progress,
        step=run.step,
        total_steps=run.total_steps,
        eta_seconds=run.eta_seconds,
        waiting_for=run.waiting_for,
        metrics={name: found["last"] for name, found in run.metrics.items() if found.get("last") is not None},
        model_id=run.model_id,
        result=shorten(run.result) if run.result else None,
        error=run.error.model_dump(exclude_none=True) if run.error else None,
    )


def describe_deployment(deployment: RemoteDeployment[Any], next_steps: list[str]) -> DeploymentAnswer:
    """Return the state of a deployment."""
    return DeploymentAnswer(
        deployment_id=deployment.id,
        name=deployment.name,
        status=deployment.status,
        engine=deployment.engine,
        model_id=deployment.model_id,
        parity=shorten(deployment.parity) if deployment.parity else None,
        waiting_for=deployment.waiting_for,
        error=deployment.error.model_dump(exclude_none=True) if deployment.error else None,
        next=next_steps,
    )


def shorten(value: Any) -> Any:
    """Return JSON with long texts cut and long lists ended by the number of what they lack."""
    if isinstance(value, str) and len(value) > MAX_VALUE_CHARACTERS:
        return f"{value[:MAX_VALUE_CHARACTERS]}… ({len(value):,} characters)"
    if isinstance(value, dict):
        return {key: shorten(one) for key, one in value.items()}
    if isinstance(value, list):
        more = [f"… and {len(value) - MAX_FINDINGS:,} more"] if len(value) > MAX_FINDINGS else []
        return [shorten(one) for one in value[:MAX_FINDINGS]] + more
    return value
