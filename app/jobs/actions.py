"""Cancel, pause, resume and retry, each a transition of the job's current run; and deletion.

A worker may claim or finish the run between our read and our update. The update is guarded by the status that
was read; if it matches no row, the job is read again and the action starts over.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col

from app.http.errors import Conflict
from app.jobs.inputs import find_deleted_inputs
from app.jobs.schemas import current_run
from app.jobs.service import get_job, list_runs
from app.runs import lifecycle
from app.tables import Checkpoint, Event, Job, JobLabel, Run, RunStatus
from trainers.runtime.error_codes import ErrorCode

# Between two requests a run changes its status a few times at most.
MAX_ATTEMPTS = 10
RETRY_VALUES: dict[str, Any] = {
    "failure_count": 0,
    "error": None,
    "claimable_at": None,
    "needed_disk_bytes": None,
    "finished_at": None,
}


class JobStatusConflict(Conflict):
    """The job's status does not allow the action."""

    code = ErrorCode.job_status_conflict


class InputDeleted(Conflict):
    """A dataset or model that the job would read again has been deleted."""

    code = ErrorCode.input_deleted


@dataclass(frozen=True)
class Action:
    """An action on a job: its transitions, and the statuses in which it has already been done."""

    participle: str
    transitions: dict[RunStatus, RunStatus]
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
    """Cancel a job: at once if no run is active, otherwise when its program has stopped."""
    runs, moved = _move_current(session, job_id, CANCEL)
    if moved is not None and moved.status is RunStatus.cancelling:
        # The program may still succeed before it receives the signal; the next stage must not start then.
        error = lifecycle.EarlierStageEnded(
            f"The job was cancelled while the stage before this one, {moved.name!r}, was running.",
            "Retry the job to run both.",
        ).as_dict()
        for run in _next_run(runs, moved):
            lifecycle.move(
                session, run.id, RunStatus.cancelled, values={"error": error}, data={"error": error}
            )
    return get_job(session, job_id)


def pause(session: Session, job_id: str) -> Job:
    """Stop a job so that it can resume from its last checkpoint."""
    # A run that waits for disk space shows that error; paused, it waits for a person.
    runs, moved = _move_current(session, job_id, PAUSE, {"error": None})
    if moved is not None and moved.status is RunStatus.pausing:
        # If the program succeeds before it receives the signal, the job pauses before the next stage.
        for run in _next_run(runs, moved):
            lifecycle.move(session, run.id, RunStatus.paused)
    return get_job(session, job_id)


def resume(session: Session, job_id: str) -> Job:
    """Queue a paused job again."""
    runs, moved = _move_current(session, job_id, RESUME)
    for run in runs[moved.position + 1 :] if moved is not None else ():
        lifecycle.move(session, run.id, RunStatus.queued, sources=[RunStatus.paused])
    return get_job(session, job_id)


def retry(session: Session, job_id: str) -> Job:
    """Queue a failed or cancelled run again, and the later stages that ended for that reason.

    Raises InputDeleted if one of them reads a dataset or a model that was deleted since.
    """
    runs, moved = _move_current(session, job_id, RETRY, RETRY_VALUES)
    for run in runs[moved.position + 1 :] if moved is not None else ():
        if run.error is not None and run.error["code"] == ErrorCode.earlier_stage_ended:
            lifecycle.move(
                session, run.id, RunStatus.queued, sources=[RunStatus.cancelled], values=RETRY_VALUES
            )
    if moved is not None and (deleted := find_deleted_inputs(session, runs, moved.position)):
        raise InputDeleted(
            f"Job {job_id} cannot be retried: {deleted[0]}, which it reads, was deleted.",
            hint="Submit a new job with another one. Uploading the same file restores a deleted dataset.",
        )
    return get_job(session, job_id)


def delete(session: Session, job_id: str) -> None:
    """Delete a finished job with its runs, events and checkpoints in one transaction.

    Their files are not deleted here: no row names them any more, so the next collection removes them.
    Raises JobNotFound and JobStatusConflict.
    """
    # The lock excludes a retry between this check and the deletion.
    runs = session.scalars(sa.select(Run).where(col(Run.job_id) == job_id).with_for_update()).all()
    get_job(session, job_id)
    if any(not run.status.finished for run in runs):
        raise JobStatusConflict(
            f"Job {job_id} is not finished; only a job that has succeeded, failed or been cancelled can be "
            "deleted.",
            hint=f"Cancel it first: POST /api/v1/jobs/{job_id}/cancel.",
        )
    run_ids = [run.id for run in runs]
    for table, column in ((Event, Event.run_id), (Checkpoint, Checkpoint.run_id), (Run, Run.id)):
        session.execute(sa.delete(table).where(col(column).in_(run_ids)))
    session.execute(sa.delete(JobLabel).where(col(JobLabel.job_id) == job_id))
    session.execute(sa.delete(Job).where(col(Job.id) == job_id))


def _move_current(
    session: Session, job_id: str, action: Action, values: dict[str, Any] | None = None
) -> tuple[Sequence[Run], Run | None]:
    """Move the job's current run; return all runs, and the one that moved or None if the action was done.

    Raises JobNotFound and JobStatusConflict.
    """
    get_job(session, job_id)
    for _ in range(MAX_ATTEMPTS):
        runs = list_runs(session, job_id)
        if not runs:
            # It was deleted after the first check.
            session.expire_all()
            get_job(session, job_id)
        run = current_run(runs)
        status = run.status
        if status in action.done:
            return runs, None
        target = action.transitions.get(status)
        if target is None:
            *others, last = action.transitions
            allowed = f"{', '.join(others)} or {last}" if others else str(last)
            raise JobStatusConflict(
                f"The status of job {job_id} is {status}; only a job that is {allowed} can be "
                f"{action.participle}."
            )
        if (moved := lifecycle.move(session, run.id, target, sources=[status], values=values)) is not None:
            return runs, moved
    raise JobStatusConflict(
        f"Job {job_id} changed its status {MAX_ATTEMPTS} times during the request.",
        hint="Send the request again.",
    )


def _next_run(runs: Sequence[Run], run: Run) -> Sequence[Run]:
    """Return the run after this one as a list, which is empty after the last."""
    return runs[run.position + 1 : run.position + 2]
