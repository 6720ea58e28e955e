"""What the job endpoints take and give."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from app.runs.schemas import ErrorView, RunView
from app.tables import RunStatus
from trainers.configs import AnyStage, Queue, StageKind
from trainers.configs.base import PRINTABLE_PATTERN
from trainers.configs.resume_guarantee import ResumeGuarantee

JobName = Annotated[
    str, StringConstraints(min_length=1, max_length=200, strip_whitespace=True, pattern=PRINTABLE_PATTERN)
]
LabelKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$")]
LabelValue = Annotated[str, StringConstraints(max_length=200, pattern=PRINTABLE_PATTERN)]

EXAMPLE: dict[str, Any] = {
    "name": "arithmetic",
    "labels": {"team": "maths"},
    "stages": [
        {
            "stage": "sft",
            "base": "starter",
            "dataset": "arithmetic-train",
            "tuning": {"method": "lora"},
            "max_steps": 120,
            "batch_size": 32,
            "learning_rate": 0.002,
        },
        {
            "stage": "evaluate",
            "model": {"stage": "sft"},
            "baseline": "starter",
            "dataset": "arithmetic-test",
            "max_new_tokens": 32,
        },
        {"stage": "deploy", "model": {"stage": "sft"}, "deployment": "arithmetic"},
    ],
}
EXAMPLES = {
    "arithmetic": {"summary": "Tune the starter model, compare it with its base, serve it", "value": EXAMPLE}
}


class JobCreate(BaseModel):
    """What a person asks for: stages that run one after another."""

    model_config = ConfigDict(extra="forbid")

    name: JobName
    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict, max_length=32)
    priority: int = Field(0, ge=-100, le=100, description="Higher starts first; equal ones start by age.")
    queue: Queue | None = Field(None, description="Hardware for the stages that name none.")
    stages: list[AnyStage] = Field(min_length=1, max_length=20)


class JobSummaryView(BaseModel):
    """A job in a list."""

    id: str
    name: str
    labels: dict[str, str]
    priority: int
    status: RunStatus = Field(description="Status of the first run that has not succeeded.")
    created_at: datetime
    stages: list["StageSummaryView"]


class StageSummaryView(BaseModel):
    """A run in a list of jobs."""

    run_id: str
    name: str
    stage: StageKind
    queue: Queue
    status: RunStatus
    progress: float = Field(description="From 0 to 1.")


class JobView(BaseModel):
    """A job with its runs."""

    id: str
    name: str
    labels: dict[str, str]
    priority: int
    status: RunStatus = Field(description="Status of the first run that has not succeeded.")
    error: ErrorView | None = Field(description="Why the job stands where it does, if something went wrong.")
    created_at: datetime
    created_by: str | None = Field(description="Id of the API key that posted the job.")
    spec: dict[str, Any] = Field(description="The request as it was posted.")
    runs: list[RunView]


class PlannedDatasetView(BaseModel):
    """The dataset that a stage would read."""

    id: str
    name: str
    sha256: str
    rows: int


class PlannedStageView(BaseModel):
    """What a stage would do and use."""

    name: str
    stage: StageKind
    queue: Queue
    config: dict[str, Any] = Field(description="The stage with every default resolved.")
    models: dict[str, Any] = Field(description="Each model reference as the worker will read it.")
    dataset: PlannedDatasetView | None
    estimated_steps: int | None = Field(description="Optimizer steps of a training stage.")
    resume_guarantee: ResumeGuarantee | None = Field(
        description="How it would go on after a stop; null for a stage that begins again."
    )
    workers: list[str] = Field(description="Names of the living workers that could take it.")
    waiting_for: str | None = Field(description="Why no living worker could take it.")


class DryRunView(BaseModel):
    """What a job would do, had it been posted."""

    name: str
    labels: dict[str, str]
    priority: int
    stages: list[PlannedStageView]


class PreflightOptions(BaseModel):
    """What a preflight does beside looking at the data."""

    model_config = ConfigDict(extra="forbid")

    probe_steps: int = Field(0, ge=0, le=100, description="Steps of each stage to train and time.")
    price_per_hour: float | None = Field(
        None, gt=0, le=1e6, description="Price of the host for an hour, for the estimated cost."
    )


class SkippedStageView(BaseModel):
    """A stage that cannot be judged before the job runs."""

    stage: str
    reason: str


class PreflightView(BaseModel):
    """The job that judges another; the result of each of its runs of kind `preflight` holds the findings."""

    job: JobView
    left_out: list[SkippedStageView]
