"""Cancel, pause, resume and retry: each is a move of the job's current run.

A run may end, start or be claimed between being read and being moved. The move is guarded by the
status that was read; when it finds another, the job is read again and decided once more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlmodel import Session

from app.http.errors import Conflict
from app.jobs.service import current_run, get_job, list_runs
from app.runs import lifecycle
from app.tables import Job, Run, RunStatus
from trainers.runtime.error_codes import ErrorCode

# A run's status only moves on, so a handful of readings meets one that holds still.
DECISIONS = 10
AFRESH: dict[str, Any] = {
    "failure_count": 0,
    "error": None,
    "claimable_at": None,
    "needed_disk_bytes": None,
    "finished_at": None,
}


class JobNotMovable(Conflict):
    """The job is not in a status from which this can be done."""

    code = ErrorCode.job_status_conflict


@dataclass(frozen=True)
class Action:
    """What a person may ask of a job: from which status to which, and where there is nothing left to do."""

    participle: str
    moves: dict[RunStatus, RunStatus]
    done: frozenset[RunStatus] = frozenset()


CANCEL = Action(
    "cancelled",
    {
        RunStatus.queued: RunStatus.cancelled,
        RunStatus.paused: RunStatus.cancelled,
        RunStatus.running: RunStatus.cancelling,
        RunStatus.pausing: RunStatus.cancelling,
    },
    frozenset({RunStatus.cancelling, RunStatus.cancelled}),
)
PAUSE = Action(
    "paused",
    {RunStatus.queued: RunStatus.paused, RunStatus.running: RunStatus.pausing},
    frozenset({RunStatus.pausing, RunStatus.paused}),
)
RESUME = Action(
    "resumed", {RunStatus.paused: RunStatus.queued}, frozenset({RunStatus.queued, RunStatus.running})
)
RETRY = Action("retried", {RunStatus.failed: RunStatus.queued, RunStatus.cancelled: RunStatus.queued})


def cancel(session: Session, job_id: str) -> Job:
    """End a job: at once if nothing runs, else when its program has stopped. Doing it twice is the same."""
    runs, moved = _move_current(session, job_id, CANCEL)
    if moved is not None and moved.status is RunStatus.cancelling:
        # The program may yet succeed before it hears of this; what follows must not start then.
        _end_following(session, runs, moved)
    return get_job(session, job_id)


def pause(session: Session, job_id: str) -> Job:
    """Stop a job so that it can go on from its last checkpoint."""
    # A run that waits for disk space shows that error; paused, it waits for a person.
    runs, moved = _move_current(session, job_id, PAUSE, {"error": None})
    if moved is not None and moved.status is RunStatus.pausing:
        # As above: if the program ends before it hears of this, the job still pauses after it.
        for run in runs[moved.position + 1 : moved.position + 2]:
            lifecycle.move(session, run.id, RunStatus.paused)
    return get_job(session, job_id)


def resume(session: Session, job_id: str) -> Job:
    """Let a paused job go on."""
    runs, moved = _move_current(session, job_id, RESUME)
    for run in runs[moved.position + 1 :] if moved is not None else ():
        lifecycle.move(session, run.id, RunStatus.queued, sources=[RunStatus.paused])
    return get_job(session, job_id)


def retry(session: Session, job_id: str) -> Job:
    """Run what failed or was cancelled again, and the stages after it that had ended for that reason."""
    runs, moved = _move_current(session, job_id, RETRY, AFRESH)
    for run in runs[moved.position + 1 :] if moved is not None else ():
        if run.error is not None and run.error["code"] == ErrorCode.earlier_stage_ended:
            lifecycle.move(session, run.id, RunStatus.queued, sources=[RunStatus.cancelled], values=AFRESH)
    return get_job(session, job_id)


def _move_current(
    session: Session, job_id: str, action: Action, values: dict[str, Any] | None = None
) -> tuple[Sequence[Run], Run | None]:
    """Move the job's current run; the answer holds the job's runs, and None when nothing was left to do."""
    get_job(session, job_id)
    for _ in range(DECISIONS):
        runs = list_runs(session, job_id)
        run = current_run(runs)
        status = run.status
        if status in action.done:
            return runs, None
        target = action.moves.get(status)
        if target is None:
            allowed = " or ".join(action.moves)
            raise JobNotMovable(
                f"Job {job_id} is {status}; only a job that is {allowed} can be {action.participle}."
            )
        if (moved := lifecycle.move(session, run.id, target, sources=[status], values=values)) is not None:
            return runs, moved
    raise JobNotMovable(f"Job {job_id} changed each time that it was read.", hint="Send the request again.")


def _end_following(session: Session, runs: Sequence[Run], ended: Run) -> None:
    error = lifecycle.EarlierStageEnded(
        f"The job was cancelled while the stage before it, {ended.name!r}, was running.",
        "Retry the job to run both.",
    ).as_dict()
    for run in runs[ended.position + 1 : ended.position + 2]:
        lifecycle.move(session, run.id, RunStatus.cancelled, values={"error": error}, data={"error": error})
