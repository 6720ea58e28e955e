"""What the state machine of runs expects: attempts, clocks, events, and the graphs of jobs."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from app.jobs.schemas import summary_view
from app.runs.attempt_outcome import AttemptOutcome
from app.tables import Event, EventType, Job, RequiredEnd, Run, RunNeed, RunStatus
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import TunesmithError


class Failure(TunesmithError):
    """The error of an attempt."""

    def __init__(self, code: ErrorCode) -> None:
        super().__init__("It failed.")
        self.code = code


OUTCOMES = {
    "stopped": AttemptOutcome(reason="the worker is shutting down"),
    "infrastructure": AttemptOutcome(Failure(ErrorCode.program_killed)),
    "person": AttemptOutcome(Failure(ErrorCode.config_invalid)),
    "memory": AttemptOutcome(Failure(ErrorCode.out_of_memory), smaller_config={"micro_batch_size": 1}),
    "not_met": AttemptOutcome(Failure(ErrorCode.gate_not_met)),
    "disk": AttemptOutcome(Failure(ErrorCode.disk_full), needed_disk_bytes=1),
}

STATUS_ORDER = [
    RunStatus(name)
    for name in ("cancelling", "pausing", "running", "queued", "paused", "failed", "cancelled", "succeeded")
]


@dataclass
class ModelRun:
    """The state of a run that the machine expects."""

    attempt: int = 0
    is_held: bool = False
    lease_ends: float = 0.0
    final: RunStatus | None = None


@dataclass
class ModelWorker:
    """A worker, and the attempt that it believes to hold."""

    worker_id: str
    clock_error: float
    run_id: str | None = None
    attempt: int = 0


@dataclass
class HostClock:
    """The error of the clock of the host that acts now. The service must not depend on it."""

    error: float = 0.0

    def now(self) -> datetime:
        """Return the time that this host believes it is."""
        return datetime.now(UTC) + timedelta(seconds=self.error)


HOST_CLOCK = HostClock()


def check_events(row: Run, events: Sequence[Event]) -> None:
    """Check that events are numbered without gaps, and that the last one of the status is the run's."""
    assert [event.seq for event in events] == list(range(1, row.event_seq + 1))
    statuses = [event.data["status"] for event in events if event.type is EventType.status]
    assert statuses[-1] == row.status


def check_job(job: Job, rows: Sequence[Run], needs: Sequence[RunNeed]) -> None:
    """Check the status of a job, and each of its runs against those that it needs."""
    counted = {row.status for row in rows if row.status is not RunStatus.skipped}
    handled = {need.needed_id for need in needs if need.required_status is RequiredEnd.failed}
    if all(row.status is not RunStatus.failed or (is_not_met(row) and row.id in handled) for row in rows):
        counted -= {RunStatus.failed}
    assert summary_view(job, rows).status == next(status for status in STATUS_ORDER if status in counted)
    by_id = {row.id: row for row in rows}
    for row in rows:
        check_needs(row, [(by_id[n.needed_id], n.required_status) for n in needs if n.run_id == row.id])


def check_needs(row: Run, needed: Sequence[tuple[Run, RequiredEnd]]) -> None:
    """Check that a run has started only after those that it needs, and has ended only because of them."""
    unmet = [
        other
        for other, required in needed
        if not required.allows(other.status) or (other.status is RunStatus.failed and not is_not_met(other))
    ]
    if row.status.held or row.status is RunStatus.succeeded:
        assert not unmet, "it started although it lacks what it needs"
    if row.status in (RunStatus.queued, RunStatus.paused):
        assert row.unmet_needs == len(unmet), "its count of unmet needs is wrong"
        assert not any(other.status.finished for other in unmet), "it can never start"
    if row.status is RunStatus.skipped:
        deciding = (RunStatus.skipped, RunStatus.succeeded)
        assert any(other.status in deciding or is_not_met(other) for other in unmet), "nothing skipped it"
    if row.status is RunStatus.cancelled and (row.error or {}).get("code") == ErrorCode.earlier_stage_ended:
        ended = [other for other in unmet if other.status in (RunStatus.failed, RunStatus.cancelled)]
        assert any(not is_not_met(other) for other in ended), "nothing has cancelled it"


def is_not_met(row: Run) -> bool:
    """Return whether the run failed as a gate that is not met."""
    return row.status is RunStatus.failed and (row.error or {}).get("code") == ErrorCode.gate_not_met
