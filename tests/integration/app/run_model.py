"""What the state machine of runs expects: attempts, clocks, events and jobs."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from app.jobs.schemas import summary_view
from app.runs.attempt_outcome import AttemptOutcome
from app.tables import Event, EventType, Job, Run, RunStatus
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
    "disk": AttemptOutcome(Failure(ErrorCode.disk_full), needed_disk_bytes=1),
}


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


def check_stages(job: Job, rows: Sequence[Run]) -> None:
    """Check that stages run in order, and that the first that has not succeeded decides the job's status."""
    statuses = [row.status for row in rows]
    unfinished = [status for status in statuses if status is not RunStatus.succeeded]
    assert summary_view(job, rows).status == (unfinished or statuses)[0]
    later = statuses[statuses.index(unfinished[0]) + 1 :] if unfinished else []
    assert not any(status.held or status is RunStatus.succeeded for status in later)
