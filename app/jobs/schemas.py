"""Request and response schemas of the job endpoints."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from app.jobs.graph.status import find_deciding_run
from app.runs.curves.main_metric import MainMetricView, find_main_metric
from app.runs.schemas import ErrorView, RunView, RunWarningView, eta_seconds, progress
from app.tables import Job, Run, RunStatus
from trainers.configs import AnyStage, Config, GateOutcome, Queue, StageKind
from trainers.configs.backends.choice import BackendChoice
from trainers.configs.base import MAX_NEEDS, PRINTABLE_PATTERN
from trainers.configs.clouds.offers import HostSpec
from trainers.configs.resume_guarantee import ResumeGuarantee
from trainers.runtime.error_codes import ErrorCode

JobName = Annotated[
    str, StringConstraints(min_length=1, max_length=200, strip_whitespace=True, pattern=PRINTABLE_PATTERN)
]
LabelKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$")]
LabelValue = Annotated[str, StringConstraints(max_length=200, pattern=PRINTABLE_PATTERN)]

MAX_STAGES = 20
# Each stage may be a sweep with its selecting stage; their runs share one limit.
MAX_RUNS = 2 * MAX_STAGES + MAX_NEEDS

JOB_STATUS = (
    "The first of these statuses that one of its runs has: `cancelling`, `pausing`, `running`, `queued`, "
    "`paused`, `failed`, `cancelled`, `succeeded`. Skipped runs do not count, nor does a gate that is not "
    "met if a stage runs `when: not_met`."
)


class JobCreate(Config):
    """A job spec: stages, each of which starts when those that it needs have succeeded."""

    name: JobName = Field(description="Name of the job; several jobs may have the same.")
    labels: dict[LabelKey, LabelValue] = Field(
        default_factory=dict, max_length=32, description="Labels by which jobs can be listed."
    )
    priority: int = Field(
        0, ge=-100, le=100, description="A higher priority starts first; equal ones start by age."
    )
    queue: Queue | None = Field(None, description="Hardware for the stages that do not name any.")
    reuse: bool = Field(
        False,
        description="Take the output of an earlier stage with an equal config, equal inputs and equal "
        "versions instead of computing it again. A stage that did shows `reused_from`.",
    )
    host: HostSpec | None = Field(
        None,
        description="A machine that is launched in a cloud for this job alone when its first run on the "
        "queue `cuda` is queued, and terminated when the job ends. Its runs on `cuda` go only there; a stage "
        "that names no hardware and can use a GPU does as well. Deployments run elsewhere. It requires the "
        "scope `admin`.",
    )
    stages: list[AnyStage] = Field(
        min_length=1,
        max_length=MAX_STAGES,
        description="The stages in order; each needs the one before it, unless `needs` names others.",
    )


class ReplayedSpec(JobCreate):
    """A job spec with a stage for each run of another job: more than a user writes, if it has a sweep."""

    stages: list[AnyStage] = Field(min_length=1, max_length=MAX_RUNS)


class StageSummaryView(BaseModel):
    """A run in a list of jobs."""

    run_id: str = Field(description="Id of the run.")
    name: str = Field(description="Name of the stage, unique in the job.")
    stage: StageKind = Field(description="Kind of the stage.")
    queue: Queue = Field(description="Hardware that it runs on.")
    status: RunStatus = Field(description="State of the run.")
    progress: float = Field(description="Share of the steps that are done, from 0 to 1.")
    eta_seconds: float | None = Field(description="Estimated time until the last step; null if unknown.")
    started_at: datetime | None = Field(description="When the first attempt started.")
    finished_at: datetime | None = Field(description="When it succeeded, failed or was cancelled.")
    worker_id: str | None = Field(description="Id of the worker that executes it now.")
    error_code: ErrorCode | None = Field(description="Why it failed or was ended.")
    metric: MainMetricView | None = Field(
        description="The value that says most about its outcome; null until there is one."
    )


class JobSummaryView(BaseModel):
    """A job in a list."""

    id: str = Field(description="Id of the job, `job_…`.")
    name: str = Field(description="Name of the job.")
    labels: dict[str, str] = Field(description="Its labels.")
    priority: int = Field(description="A higher priority starts first.")
    status: RunStatus = Field(description=JOB_STATUS)
    created_at: datetime = Field(description="When it was submitted.")
    started_at: datetime | None = Field(description="When the first of its runs started.")
    finished_at: datetime | None = Field(description="When the last of its runs ended; null until then.")
    metric: MainMetricView | None = Field(description="That of its last stage that has one.")
    stages: list[StageSummaryView] = Field(description="Its runs in order.")


class JobView(BaseModel):
    """A job with its runs."""

    id: str = Field(description="Id of the job, `job_…`.")
    name: str = Field(description="Name of the job.")
    labels: dict[str, str] = Field(description="Its labels.")
    priority: int = Field(description="A higher priority starts first.")
    status: RunStatus = Field(description=JOB_STATUS)
    error: ErrorView | None = Field(description="Error of the run that decides the status.")
    created_at: datetime = Field(description="When it was submitted.")
    created_by: str | None = Field(description="Id of the API key that submitted it; null without keys.")
    spec: dict[str, Any] = Field(description="The request as it was submitted.")
    deleted_inputs: list[str] = Field(
        description="Ids of datasets, models and evaluations that its stages read and that have been deleted."
    )
    runs: list[RunView] = Field(description="Its runs in order, one for each stage.")
    warnings: list[RunWarningView] = Field(
        description="The first 50 warnings of its runs, in the order of the runs: findings in data and "
        "settings, a loss that rises, a smaller micro-batch after too little memory, and so on."
    )
    further_warnings: int = Field(
        description="Number of further warnings; GET /api/v1/runs/{id}/events?type=warning lists those of a "
        "run."
    )


class PlannedDatasetView(BaseModel):
    """The dataset that a stage would read."""

    id: str = Field(description="Id of the dataset.")
    name: str = Field(description="Name of the dataset.")
    sha256: str = Field(description="Hash of the file.")
    rows: int = Field(description="Number of its rows.")


class PlannedShareView(PlannedDatasetView):
    """A dataset of a mixture that a stage would read."""

    epoch_rows: int = Field(description="Number of its rows in an epoch.")
    repeats: str | None = Field(description="How its rows are repeated; null if none is.")


class PlannedStageView(BaseModel):
    """The plan for a stage."""

    name: str = Field(description="Name of the stage, unique in the job.")
    stage: StageKind = Field(description="Kind of the stage.")
    queue: Queue = Field(description="Hardware that it would run on.")
    queue_reason: str = Field(description="Why this hardware was chosen.")
    backend: BackendChoice | None = Field(
        description="Library that would train it, and why; null for a stage that does not train."
    )
    needs: list[str] = Field(description="Names of the stages after which it starts.")
    when: GateOutcome = Field(description="Outcome of the gate among them after which it runs.")
    config: dict[str, Any] = Field(description="The stage with every default resolved.")
    models: dict[str, Any] = Field(description="Its models as the worker will read them, by field.")
    dataset: PlannedDatasetView | None = Field(
        description="The dataset that it would read; null if an earlier stage produces it."
    )
    mixture: list[PlannedShareView] = Field(
        [],
        description="The datasets of a mixture, in the order of the config; empty without one, or if an "
        "earlier stage produces one of them.",
    )
    estimated_steps: int | None = Field(description="Optimizer steps of a training stage.")
    power: str | None = Field(
        None,
        description="How small a difference between its models an evaluation would find; null for other "
        "stages, a single model, or a dataset that does not exist yet.",
    )
    resume_guarantee: ResumeGuarantee | None = Field(
        description="Whether it would resume exactly after a stop; null for a stage that starts again."
    )
    workers: list[str] = Field(description="Names of the alive workers that can run it.")
    waiting_for: str | None = Field(description="Why no alive worker can run it.")
    warnings: list[str] = Field(
        description="What is possible, but probably not meant, such as a run of days."
    )


class DryRunView(BaseModel):
    """The plan for a job that has not been submitted."""

    name: str = Field(description="Name of the job.")
    labels: dict[str, str] = Field(description="Its labels.")
    priority: int = Field(description="A higher priority starts first.")
    stages: list[PlannedStageView] = Field(description="The plan for each stage in order.")


class PreflightOptions(BaseModel):
    """Options of a preflight in addition to the job spec."""

    model_config = ConfigDict(extra="forbid")

    probe_steps: int = Field(0, ge=0, le=100, description="Steps of each stage to train and time.")
    price_per_hour: float | None = Field(
        None, gt=0, le=1e6, description="Price of the host per hour, for the cost estimate."
    )


class SkippedStageView(BaseModel):
    """A stage that cannot be checked before the job runs."""

    stage: str = Field(description="Name of the stage.")
    reason: str = Field(description="Why it cannot be checked.")


class PreflightView(BaseModel):
    """The preflight of a job; the result of each of its `preflight` runs contains the findings."""

    job: JobView = Field(description="The job that checks the stages.")
    skipped: list[SkippedStageView] = Field(description="The stages that it does not check.")


def summary_view(job: Job, runs: Sequence[Run]) -> JobSummaryView:
    """Build the view of a job in a list."""
    stages = [
        StageSummaryView(
            run_id=run.id,
            name=run.name,
            stage=run.stage,
            queue=run.queue,
            status=run.status,
            progress=progress(run),
            eta_seconds=eta_seconds(run),
            started_at=run.started_at,
            finished_at=run.finished_at,
            worker_id=run.worker_id,
            error_code=ErrorCode(run.error["code"]) if run.error else None,
            metric=find_main_metric(run),
        )
        for run in runs
    ]
    has_ended = all(run.status.finished for run in runs)
    ends = [run.finished_at for run in runs]
    return JobSummaryView(
        **job.model_dump(include={"id", "name", "labels", "priority", "created_at"}),
        status=find_deciding_run(runs).status,
        started_at=min(filter(None, (run.started_at for run in runs)), default=None),
        finished_at=max(filter(None, ends), default=None) if has_ended else None,
        metric=next((stage.metric for stage in reversed(stages) if stage.metric is not None), None),
        stages=stages,
    )


def job_view(
    job: Job,
    runs: Sequence[Run],
    run_views: list[RunView],
    deleted_inputs: list[str],
    warnings: tuple[list[RunWarningView], int],
) -> JobView:
    """Build the view of a job with its runs, and their warnings with the number of those left out."""
    deciding = find_deciding_run(runs)
    return JobView(
        **job.model_dump(include={"id", "name", "labels", "priority", "spec", "created_at"}),
        created_by=job.created_by or None,
        status=deciding.status,
        error=ErrorView.model_validate(deciding.error) if deciding.error else None,
        deleted_inputs=deleted_inputs,
        runs=run_views,
        warnings=warnings[0],
        further_warnings=warnings[1],
    )
