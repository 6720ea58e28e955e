"""The statuses of a run, and the changes between them that are allowed.

queued → running → succeeded | failed
running → pausing → paused → queued           (pause, resume)
running → cancelling → cancelled              (cancel)
running → queued                              (the attempt is retried: see `lifecycle.end_attempt`)
queued | paused → skipped | cancelled         (a run that it needs ended otherwise: see `graph.py`)
queued → failed                               (the host that its job asked for cannot be launched)
failed | cancelled | skipped → queued         (retry)
"""

from app.tables import Run, RunStatus
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import TunesmithError

TRANSITIONS: dict[RunStatus, frozenset[RunStatus]] = {
    RunStatus.queued: frozenset(
        {RunStatus.running, RunStatus.paused, RunStatus.cancelled, RunStatus.skipped, RunStatus.failed}
    ),
    RunStatus.running: frozenset(
        {RunStatus.pausing, RunStatus.cancelling, RunStatus.succeeded, RunStatus.failed, RunStatus.queued}
    ),
    RunStatus.pausing: frozenset(
        {RunStatus.paused, RunStatus.cancelling, RunStatus.succeeded, RunStatus.failed}
    ),
    RunStatus.paused: frozenset({RunStatus.queued, RunStatus.cancelled, RunStatus.skipped}),
    # A program may end before its worker has seen the cancellation: its result is kept.
    RunStatus.cancelling: frozenset({RunStatus.cancelled, RunStatus.succeeded, RunStatus.failed}),
    RunStatus.failed: frozenset({RunStatus.queued}),
    # A retry finds that a gate excludes a run which was cancelled before the gate decided.
    RunStatus.cancelled: frozenset({RunStatus.queued, RunStatus.skipped}),
    RunStatus.skipped: frozenset({RunStatus.queued}),
    RunStatus.succeeded: frozenset(),
}


class EarlierStageEnded(TunesmithError):
    code = ErrorCode.earlier_stage_ended


class SkippedByGate(TunesmithError):
    code = ErrorCode.skipped_by_gate


def explain_unstarted(to: RunStatus, ended: Run) -> TunesmithError:
    """Return why a run that needs `ended` is cancelled or skipped before it has started."""
    if to is RunStatus.skipped and ended.status is not RunStatus.skipped:
        outcome = "met" if ended.status is RunStatus.succeeded else "not met"
        return SkippedByGate(f"The gate {ended.name!r} is {outcome}.")
    message = f"The stage {ended.name!r}, which this one needs, is {ended.status}."
    if to is RunStatus.skipped:
        return SkippedByGate(message)
    return EarlierStageEnded(message, "Retry the job to run both.")
