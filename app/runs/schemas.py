"""Response schemas of the run endpoints."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.runs.curves.main_metric import MetricSummaryView
from app.tables import Event, EventType, Run, RunStatus, TrackingService
from trainers.configs import GateOutcome, Queue, StageKind
from trainers.configs.backends.choice import BackendChoice, describe_backend
from trainers.configs.resume_guarantee import ResumeGuarantee, get_resume_guarantee
from trainers.runtime.error_codes import ErrorCode


class ErrorView(BaseModel):
    """The reason why a run or a deployment failed or was ended."""

    code: ErrorCode = Field(description="A code of the published list, for programs to branch on.")
    message: str = Field(description="What went wrong.")
    hint: str | None = Field(None, description="What to do about it.")
    details: dict[str, Any] | None = Field(
        None, description="Values for programs to read: those of a gate that is not met."
    )


class TrackingLinkView(BaseModel):
    """The run in a tracking service, which receives it in the background; this API has all metrics anyway."""

    service: TrackingService = Field(description="The tracking service.")
    run_id: str | None = Field(
        description="The run's id in the service, or its folder in TensorBoard; null until it is known there."
    )
    url: str | None = Field(description="Where to open it; `file:` is a folder on the worker's host.")
    step: int | None = Field(
        description="The last step whose metrics have arrived. W&B confirms none before the attempt ends."
    )
    complete: bool = Field(
        False,
        description="Whether all metrics, the result and the status have arrived. It becomes true after the "
        "run has ended, usually within seconds.",
    )
    error: str | None = Field(
        None, description="Why the service accepts nothing at the moment; sending is retried."
    )


class RunMemberView(BaseModel):
    """A worker that takes part in the last attempt at a run on several hosts."""

    node_rank: int = Field(description="Rank of the host; 0 is the leader, which publishes the output.")
    worker_id: str = Field(description="Id of the worker.")
    worker: str | None = Field(description="Name of the worker; null if its row was deleted.")
    host: str | None = Field(description="Name of its host.")
    address: str = Field(description="Address at which the other hosts reach it.")
    ready_at: datetime | None = Field(description="When the inputs of the run were on its disk.")
    ended_at: datetime | None = Field(
        description="When its program ended; null while it runs, or if it was lost."
    )
    error: ErrorView | None = Field(description="Why its program failed.")


class RunView(BaseModel):
    """The execution of one stage."""

    id: str = Field(description="Id of the run, `run_…`.")
    job_id: str = Field(description="Id of its job.")
    position: int = Field(description="Position of the stage in the job, from 0.")
    name: str = Field(description="Name of the stage, unique in the job.")
    full_name: str = Field(
        description="Job and stage, such as `ko-en-news-sft`: the name of the run in tracking services, and "
        "of the model that it produces. It need not be unique."
    )
    stage: StageKind = Field(description="Kind of the stage.")
    queue: Queue = Field(description="Hardware that it runs on.")
    priority: int = Field(description="Priority of the job; a higher one starts first.")
    status: RunStatus = Field(description="State of the run.")
    needs: list[str] = Field(description="Names of the stages after which it starts.")
    when: GateOutcome = Field(description="Outcome of the gate among them after which it runs.")
    waiting_for: str | None = Field(
        description="What a queued run waits for; null if it is about to start or is not queued."
    )
    error: ErrorView | None = Field(description="Why it failed or was ended.")
    attempt: int = Field(description="Number of times that a worker has started it.")
    failure_count: int = Field(description="Failures of workers and their hosts since its last checkpoint.")
    step: int = Field(description="Steps that are done: optimizer steps, or rows of an evaluation.")
    total_steps: int | None = Field(description="Steps of the whole run; null until the program reports it.")
    progress: float = Field(description="Share of the steps that are done, from 0 to 1.")
    eta_seconds: float | None = Field(description="Estimated time until the last step; null if unknown.")
    worker_id: str | None = Field(description="Id of the worker that executes it now.")
    members: list[RunMemberView] = Field(
        description="The workers of the last attempt at a run with `nodes` above 1; empty for all others."
    )
    created_at: datetime = Field(description="When the job was submitted.")
    started_at: datetime | None = Field(description="When the first attempt started.")
    finished_at: datetime | None = Field(description="When it succeeded, failed or was cancelled.")
    config: dict[str, Any] = Field(description="The stage with every default resolved.")
    result: dict[str, Any] | None = Field(
        description="The output of the program; its fields depend on the stage."
    )
    metrics: dict[str, MetricSummaryView] = Field(
        description="The last and the extreme values of each metric, by name; empty for a run of a version "
        "that did not record them, whose events contain all values."
    )
    model_id: str | None = Field(description="Id of the registry model that the run produced.")
    inputs: dict[str, Any] | None = Field(
        description="The models and datasets that the last attempt has read, by hash, with the hash of the "
        "programs' code and the versions of packages; null before the first attempt."
    )
    reused_from: str | None = Field(
        description="Id of the run whose output this one has reused; null if it has computed its own."
    )
    backend: BackendChoice | None = Field(
        description="Library that trains it, and why; null for a stage that does not train."
    )
    resume_guarantee: ResumeGuarantee | None = Field(
        description="Whether it resumes exactly after a stop, and if not, why; an event `resumed` reports "
        "how it did. Null for a stage that starts again from the beginning."
    )
    log_published: bool = Field(description="Whether the file `log.txt` can be downloaded.")
    tracking: list[TrackingLinkView] = Field(description="The run in MLflow, W&B and TensorBoard.")


class RunSummaryView(BaseModel):
    """A run in a list."""

    id: str = Field(description="Id of the run, `run_…`.")
    job_id: str = Field(description="Id of its job.")
    position: int = Field(description="Position of the stage in the job, from 0.")
    name: str = Field(description="Name of the stage, unique in the job.")
    full_name: str = Field(description="Job and stage, such as `ko-en-news-sft`; it need not be unique.")
    stage: StageKind = Field(description="Kind of the stage.")
    queue: Queue = Field(description="Hardware that it runs on.")
    priority: int = Field(description="Priority of the job; a higher one starts first.")
    status: RunStatus = Field(description="State of the run.")
    error: ErrorView | None = Field(description="Why it failed or was ended.")
    attempt: int = Field(description="Number of times that a worker has started it.")
    step: int = Field(description="Steps that are done: optimizer steps, or rows of an evaluation.")
    total_steps: int | None = Field(description="Steps of the whole run; null until the program reports it.")
    progress: float = Field(description="Share of the steps that are done, from 0 to 1.")
    eta_seconds: float | None = Field(description="Estimated time until the last step; null if unknown.")
    worker_id: str | None = Field(description="Id of the worker that executes it now.")
    model_id: str | None = Field(description="Id of the registry model that the run produced.")
    created_at: datetime = Field(description="When the job was submitted.")
    started_at: datetime | None = Field(description="When the first attempt started.")
    finished_at: datetime | None = Field(description="When it succeeded, failed or was cancelled.")


class EventView(BaseModel):
    """An event of a run."""

    model_config = ConfigDict(from_attributes=True)

    seq: int = Field(description="Number of the event within the run, from 1.")
    attempt: int = Field(description="The attempt that it belongs to; 0 before the first.")
    type: EventType = Field(description="Kind of the event, which decides the fields of `data`.")
    step: int | None = Field(description="The step that it belongs to.")
    data: dict[str, Any] = Field(description="Content of the event.")
    created_at: datetime = Field(description="When the service stored it.")


class JobEventView(EventView):
    """An event of one of a job's runs."""

    run_id: str = Field(description="Id of the run.")
    run: str = Field(description="Name of its stage, unique in the job.")


class RunWarningView(BaseModel):
    """A warning of a run: it continues, but perhaps not as intended."""

    run_id: str = Field(description="Id of the run.")
    run: str = Field(description="Name of its stage, unique in the job.")
    seq: int = Field(description="Number of the event within the run.")
    attempt: int = Field(description="The attempt that it belongs to.")
    code: str = Field(description="Kind of the warning, such as a code of preflight's findings.")
    message: str = Field(description="What is unusual, and the fix.")
    created_at: datetime = Field(description="When the service stored it.")


class MetricsView(BaseModel):
    """The metrics of one step."""

    seq: int = Field(description="Number of the event within the run.")
    attempt: int = Field(description="The attempt that logged them.")
    step: int | None = Field(description="The step that they belong to.")
    values: dict[str, float | None] = Field(description="Values by name; null for one that was not finite.")
    created_at: datetime = Field(description="When the service stored them.")


class LogView(BaseModel):
    """The log lines of about one second."""

    seq: int = Field(description="Number of the event within the run.")
    attempt: int = Field(description="The attempt that wrote them.")
    lines: list[str] = Field(description="Lines of the program's output.")
    created_at: datetime = Field(description="When the service stored them.")


class RunFileView(BaseModel):
    """A published file of a run."""

    name: str = Field(description="Name of the file.")
    size_bytes: int = Field(description="Size of the file.")


class RunFilesView(BaseModel):
    """The published files of a run's last attempt."""

    items: list[RunFileView] = Field(description="All files, by name.")


def run_view(
    run: Run, waiting_for: str | None, needs: list[str], members: Sequence[Mapping[str, Any]] = ()
) -> RunView:
    """Build the view of a run; `waiting_for` explains why a queued run has not started.

    `needs` are the names of the stages that it needs directly, `members` the workers of its last attempt.
    """
    return RunView(
        **run.model_dump(include=RunView.model_fields.keys() & Run.model_fields.keys() - {"metrics"}),
        metrics=run.metrics or {},
        needs=needs,
        when=GateOutcome(run.config.get("when", GateOutcome.met)),
        waiting_for=waiting_for,
        members=[RunMemberView.model_validate(member) for member in members],
        progress=progress(run),
        eta_seconds=eta_seconds(run),
        backend=_backend(run),
        resume_guarantee=_resume_guarantee(run),
        log_published=run.log_artifact is not None,
    )


def run_summary_view(run: Run) -> RunSummaryView:
    """Build the view of a run in a list."""
    return RunSummaryView(
        **run.model_dump(include=RunSummaryView.model_fields.keys() & Run.model_fields.keys()),
        progress=progress(run),
        eta_seconds=eta_seconds(run),
    )


def metrics_view(event: Event) -> MetricsView:
    """Build the view of a metrics event."""
    return MetricsView(**event.model_dump(exclude={"type", "data"}), values=event.data)


def warning_view(event: Event, run: Run) -> RunWarningView:
    """Build the view of a warning event."""
    message = " ".join(filter(None, (event.data["message"], event.data.get("hint"))))
    common = event.model_dump(include={"run_id", "seq", "attempt", "created_at"})
    return RunWarningView(**common, run=run.name, code=event.data["code"], message=message)


def log_view(event: Event) -> LogView:
    """Build the view of a log event."""
    return LogView(**event.model_dump(exclude={"type", "data", "step"}), lines=event.data["lines"])


def progress(run: Run) -> float:
    """Return the share of the steps that are done, from 0 to 1."""
    if run.status is RunStatus.succeeded:
        return 1.0
    return min(1.0, run.step / run.total_steps) if run.total_steps else 0.0


def _backend(run: Run) -> BackendChoice | None:
    try:
        return describe_backend(run.stage_config(), run.queue)
    except ValidationError:
        # See `_resume_guarantee`.
        return None


def _resume_guarantee(run: Run) -> ResumeGuarantee | None:
    try:
        return get_resume_guarantee(run.stage_config(), run.queue)
    except ValidationError:
        # The run is of an older version whose config cannot be used any more; it can still be read.
        return None


def eta_seconds(run: Run) -> float | None:
    """Return the estimated seconds until the last step of a running program; None if unknown."""
    if not run.status.held or not run.total_steps or run.seconds_per_step is None:
        return None
    return round(max(0, run.total_steps - run.step) * run.seconds_per_step, 1)
