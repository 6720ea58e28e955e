"""Jobs: following, waiting, and acting on them."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from datetime import datetime
from typing import Any, ClassVar

from pydantic import Field

from app.client.api.connection import RECONNECT_SECONDS, Connection
from app.client.api.errors import (
    GateRefused,
    JobCancelled,
    JobFailed,
    WaitInterrupted,
    WaitTimeout,
)
from app.client.api.modes import Iteration, Mode, Operation
from app.client.notebook import draw_job
from app.client.views.base import ApiView, ErrorRecord, RemoteObject
from app.client.views.evaluations import RemoteComparison, RemoteEvaluation
from app.client.views.runs import RemoteRun, RunEvent

MIN_POLL_SECONDS, MAX_POLL_SECONDS = 0.25, 3.0
FINISHED = ("succeeded", "failed", "cancelled")


class JobEvent(RunEvent):
    """An event of one of a job's runs. `position` is where a later stream continues after it."""

    api_schema: ClassVar[str | None] = None

    run_id: str
    run: str
    position: str


class RunWarning(ApiView):
    """A warning of a run."""

    api_schema = "RunWarningView"

    run_id: str
    run: str
    seq: int
    attempt: int
    code: str
    message: str
    created_at: datetime


class StageSummary(ApiView):
    """A run in a list of jobs."""

    api_schema = "StageSummaryView"

    run_id: str
    name: str
    stage: str
    queue: str
    status: str
    progress: float
    eta_seconds: float | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    worker_id: str | None = None
    error_code: str | None = None
    metric: dict[str, Any] | None = None


class JobSummary(ApiView):
    """A job in a list."""

    api_schema = "JobSummaryView"

    id: str
    name: str
    labels: dict[str, str]
    priority: int
    status: str
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    stages: list[StageSummary]
    metric: dict[str, Any] | None = None

    @property
    def progress(self) -> float:
        """The share of the job that is done, from 0 to 1, if all stages took equal time."""
        return sum(one.progress for one in self.stages) / max(1, len(self.stages))


class PlannedStage(ApiView):
    """The plan for a stage."""

    api_schema = "PlannedStageView"

    name: str
    stage: str
    queue: str
    queue_reason: str
    backend: dict[str, Any] | None = None
    needs: list[str]
    when: str
    config: dict[str, Any]
    models: dict[str, Any]
    dataset: dict[str, Any] | None = None
    mixture: list[dict[str, Any]] = Field([])
    estimated_steps: int | None = None
    power: str | None = None
    resume_guarantee: dict[str, Any] | None = None
    workers: list[str]
    waiting_for: str | None = None
    warnings: list[str]


class JobPlan(ApiView):
    """The plan for a job that was not submitted."""

    api_schema = "DryRunView"

    name: str
    labels: dict[str, str]
    priority: int
    stages: list[PlannedStage]


class FieldChange(ApiView):
    """A value that differs between two jobs."""

    api_schema = "FieldDifference"

    field: str
    a: Any
    b: Any


class StageChange(ApiView):
    """What the runs of one stage differ in."""

    api_schema = "StageDifference"

    stage: str
    a: str | None = None
    b: str | None = None
    equal: bool
    config: list[FieldChange]
    inputs: list[FieldChange]
    environment: list[FieldChange]
    results: list[FieldChange]


class JobChange(ApiView):
    """What two jobs differ in."""

    api_schema = "JobDifferenceView"

    a: str
    b: str
    stages: list[StageChange]
    omitted: int


class RemoteJob(RemoteObject[Mode]):
    """A job: an ordered list of stages, each carried out by a run."""

    api_schema = "JobView"

    id: str
    name: str
    labels: dict[str, str]
    priority: int
    status: str
    error: ErrorRecord | None = None
    created_at: datetime
    created_by: str | None = None
    spec: dict[str, Any]
    deleted_inputs: list[str]
    runs: list[RemoteRun[Mode]]
    warnings: list[RunWarning]
    further_warnings: int

    @property
    def finished(self) -> bool:
        """Whether the job has ended; only a retry starts it again."""
        return self.status in FINISHED

    @property
    def progress(self) -> float:
        """The share of the job that is done, from 0 to 1, if all stages took equal time."""
        return sum(run.progress for run in self.runs) / max(1, len(self.runs))

    @property
    def model_id(self) -> str | None:
        """Id of the model that the last training stage has produced."""
        return next((run.model_id for run in reversed(self.runs) if run.model_id is not None), None)

    def run(self, name: str) -> RemoteRun[Mode]:
        """Return the run of a stage; raises KeyError."""
        for run in self.runs:
            if run.name == name:
                return run
        raise KeyError(f"{self.id} has no stage {name}; its stages are {[run.name for run in self.runs]}")

    @Operation
    async def refresh(self) -> "RemoteJob[Mode]":
        """Read the job again, into this object."""
        self.adopt(await read_job(self._connection, self.id))
        return self

    @Operation
    async def wait(
        self,
        timeout: float | None = None,
        on_update: Callable[["RemoteJob[Mode]"], Awaitable[None] | None] | None = None,
    ) -> "RemoteJob[Mode]":
        """Wait until the job has ended; return it if it has succeeded.

        `on_update` gets the job each time that it was read. Raises JobFailed, GateRefused or JobCancelled
        with the error of the run, and WaitTimeout. After Ctrl-C, the job continues.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        delay, state = MIN_POLL_SECONDS, self._state()
        try:
            while not self.finished:
                if deadline is not None and time.monotonic() >= deadline:
                    raise WaitTimeout(
                        f"{self.id} is {self.status} after {timeout:g} seconds, and continues.",
                        f"Follow it with `tunesmith logs -f {self.id}`.",
                    )
                await self._connection.transport.sleep(delay)
                self.adopt(await read_job(self._connection, self.id, patience=RECONNECT_SECONDS))
                updated = None if on_update is None else on_update(self)
                if updated is not None:
                    await updated
                delay = MIN_POLL_SECONDS if self._state() != state else min(MAX_POLL_SECONDS, 1.3 * delay)
                state = self._state()
        except KeyboardInterrupt:
            raise WaitInterrupted(f"{self.id} continues. {self.follow_hint}") from None
        self.raise_failure()
        return self

    @Iteration
    async def stream(self, after: str = "0") -> AsyncIterator[JobEvent]:
        """Yield the events of all runs until the job has ended, once each, over any interruption.

        `after` is the `position` of the last event that was handled.
        """
        async with aclosing(self._connection.events(f"/jobs/{self.id}/stream", after)) as events:
            async for event in events:
                if event.event != "end":
                    found: Any = event.json()
                    yield JobEvent.model_validate({**found, "position": event.id})

    @Operation
    async def pause(self) -> "RemoteJob[Mode]":
        """Stop the job after a checkpoint, so that it can be resumed."""
        return await self._act("pause")

    @Operation
    async def resume(self) -> "RemoteJob[Mode]":
        """Queue the paused job again; it continues from its last checkpoint."""
        return await self._act("resume")

    @Operation
    async def cancel(self) -> "RemoteJob[Mode]":
        """Cancel the job."""
        return await self._act("cancel")

    @Operation
    async def retry(self) -> "RemoteJob[Mode]":
        """Queue the failed or cancelled job again, from the stage that failed or was cancelled."""
        return await self._act("retry")

    @Operation
    async def delete(self) -> None:
        """Delete the finished job with its runs and files; its models and datasets remain."""
        await self._connection.delete(f"/jobs/{self.id}")

    @Operation
    async def evaluations(self) -> list[RemoteEvaluation[Mode]]:
        """Return the evaluations that the job has produced, in the order of its stages."""
        pages = self._connection.pages("/evaluations", RemoteEvaluation[Mode], job=self.id)
        return [one async for one in pages][::-1]

    @Operation
    async def comparisons(self) -> list[RemoteComparison[Mode]]:
        """Return the comparisons that the job has produced, in the order of its stages."""
        pages = self._connection.pages("/comparisons", RemoteComparison[Mode], job=self.id)
        found = [one async for one in pages][::-1]
        return [await self._connection.get(f"/comparisons/{one.id}", RemoteComparison[Mode]) for one in found]

    @property
    def follow_hint(self) -> str:
        """How to follow the job from another place."""
        return f"Follow it with `tunesmith logs -f {self.id}`, or client.jobs.get({self.id!r}).wait()."

    def raise_failure(self) -> None:
        """Raise the error of a job that has failed or was cancelled."""
        if self.status == "cancelled":
            raise JobCancelled(f"{self.id} ({self.name}) was cancelled.", job_id=self.id)
        if self.status != "failed":
            return
        failed = next((run for run in self.runs if run.status == "failed" and run.error), None)
        error = self.error or (failed.error if failed else None)
        assert error is not None, "a failed job has the error of the run that decides its status"
        kind = GateRefused if error.code == "gate_not_met" else JobFailed
        stage = f"The stage {failed.name} of" if failed else ""
        raise kind(
            f"{stage} {self.id} failed: {error.message}".strip(),
            error.hint,
            code=error.code,
            details=error.details,
            job_id=self.id,
        )

    async def _act(self, action: str) -> "RemoteJob[Mode]":
        # Neither retry nor resume does anything to a job that is already queued, except to refuse.
        path, repeatable = f"/jobs/{self.id}/{action}", action in ("pause", "cancel")
        self.adopt(await self._connection.post(path, RemoteJob[Mode], repeatable=repeatable))
        return self

    def _state(self) -> list[tuple[str, int]]:
        return [(run.status, run.step) for run in self.runs]

    def _repr_html_(self) -> str:
        return draw_job(self)


async def read_job(connection: Connection, job_id: str, patience: float | None = None) -> RemoteJob[Any]:
    """Return a job as it is now."""
    response = await connection.request("GET", f"/api/v1/jobs/{job_id}", patience=patience)
    return connection.read_view(response, RemoteJob[Any])


class Preflight(RemoteObject[Mode]):
    """A check of a job's stages, as a job of its own."""

    api_schema = "PreflightView"

    job: RemoteJob[Mode]
    skipped: list[dict[str, str]]
