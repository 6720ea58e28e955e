"""Cancel, pause, resume and retry, each a transition of all runs of a job that allow it; and deletion.

The rows of a job's runs are locked first, in the order of the stages, so that no worker changes one between
the decision and the update. A worker locks the run that it ends before those that need it: the same order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col

from app.hosts.job_hosts import check_restart
from app.http.errors import Conflict, InUse
from app.jobs.graph.status import find_deciding_run
from app.jobs.inputs import find_deleted_inputs, list_unfinished_jobs
from app.jobs.service import get_job, list_runs
from app.keys.limits import check_scope, check_served_use
from app.runs import graph, lifecycle
from app.settings import get_settings
from app.tables import (
    Batch,
    Checkpoint,
    Comparison,
    EvalRun,
    Evaluation,
    EvaluationScore,
    Event,
    FineTuningCheckpoint,
    FineTuningJob,
    Job,
    JobHost,
    JobLabel,
    Promotion,
    Run,
    RunMember,
    RunNeed,
    RunStatus,
    Scope,
)
from app.workers.service import AliveWorkers
from trainers.configs import parse_stage
from trainers.configs.engines import split_capabilities
from trainers.configs.stages.migration.fetch import OPENAI
from trainers.runtime.error_codes import ErrorCode

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
    """An action on a job: the transitions of its runs, and the job's statuses in which it has been done."""

    participle: str
    transitions: dict[RunStatus, RunStatus]
    """A job can be acted on if its own status is one of the keys."""
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
RETRYABLE = (RunStatus.failed, RunStatus.cancelled)


class JobAction(StrEnum):
    """What a person can do with a job."""

    pause = "pause"
    resume = "resume"
    retry = "retry"
    cancel = "cancel"
    delete = "delete"


@dataclass(frozen=True)
class ActionState:
    """Whether the status of a job allows an action now."""

    action: JobAction
    is_allowed: bool
    statuses: tuple[RunStatus, ...]
    """The statuses of a job that allow it."""


def list_actions(runs: Sequence[Run]) -> list[ActionState]:
    """Return each action on the job of these runs, with the result of the check that the action makes.

    An action that has been done already changes nothing, so it is not allowed here.
    """
    status = find_deciding_run(runs).status
    states = [
        ActionState(action, status in rule.transitions and status not in rule.done, tuple(rule.transitions))
        for action, rule in ((JobAction.pause, PAUSE), (JobAction.resume, RESUME))
    ]
    states.append(ActionState(JobAction.retry, _is_retryable(runs), RETRYABLE))
    states.append(ActionState(JobAction.cancel, status in CANCEL.transitions, tuple(CANCEL.transitions)))
    finished = tuple(each for each in RunStatus if each.finished and each is not RunStatus.skipped)
    states.append(ActionState(JobAction.delete, all(run.status.finished for run in runs), finished))
    return states


def cancel(session: Session, job_id: str) -> Job:
    """Cancel all unfinished runs of a job: at once, or when their programs have stopped."""
    return _act(session, job_id, CANCEL)


def pause(session: Session, job_id: str) -> Job:
    """Stop a job so that it can resume from its last checkpoints; no other stage starts meanwhile."""
    # A run that waits for disk space shows that error; paused, it waits for a person.
    return _act(session, job_id, PAUSE, {"error": None})


def resume(session: Session, job_id: str, key_id: str) -> Job:
    """Queue the paused runs of a job again, if the key that asks for it may use their models.

    Raises JobNotFound, JobStatusConflict, ServedModelForbidden and DailyTokensUsed.
    """
    _check_models(session, job_id, key_id)
    return _act(session, job_id, RESUME)


def retry(session: Session, job_id: str, key_id: str) -> Job:
    """Queue the failed and cancelled runs of a job again, and those that were skipped because of them.

    Other branches may still be running. Raises JobNotFound, JobStatusConflict, InputDeleted if one of the
    runs reads a dataset or a model that was deleted since, and ServedModelForbidden or DailyTokensUsed if the
    key that asks for it may not use their models.
    """
    _check_models(session, job_id, key_id)
    runs = _lock_runs(session, job_id)
    if not _is_retryable(runs):
        raise _conflict(job_id, find_deciding_run(runs).status, RETRYABLE, "retried")
    plan = list(graph.plan_retry(runs, graph.load_needs(session, job_id)))
    for run, to in plan:
        lifecycle.move(session, run.id, to, values=RETRY_VALUES if to is RunStatus.queued else None)
    if deleted := find_deleted_inputs(session, runs, [run for run, _ in plan]):
        raise InputDeleted(
            f"Job {job_id} cannot be retried: {deleted[0]}, which it reads, was deleted.",
            hint="Submit a new job with another one. Uploading the same file restores a deleted dataset.",
        )
    return get_job(session, job_id)


def delete(session: Session, job_id: str) -> None:
    """Delete a finished job with its runs, events, checkpoints and evaluations in one transaction.

    Their files are not deleted here: no row names them any more, so the next collection removes them.
    Raises JobNotFound, JobStatusConflict, and InUse while an unfinished job compares one of its evaluations.
    """
    # The lock excludes a retry between this check and the deletion.
    runs = _lock_runs(session, job_id)
    if any(not run.status.finished for run in runs):
        raise JobStatusConflict(
            f"Job {job_id} is not finished; only a job that has succeeded, failed or been cancelled can be "
            "deleted.",
            hint=f"Cancel it first: POST /api/v1/jobs/{job_id}/cancel.",
        )
    run_ids = [run.id for run in runs]
    _delete_evaluations(session, job_id)
    of_runs = (
        (Batch, Batch.run_id),
        (RunNeed, RunNeed.run_id),
        (RunMember, RunMember.run_id),
        (Comparison, Comparison.run_id),
        (Event, Event.run_id),
        (Checkpoint, Checkpoint.run_id),
        (Promotion, Promotion.run_id),
        (Run, Run.id),
    )
    for table, column in of_runs:
        session.execute(sa.delete(table).where(col(column).in_(run_ids)))
    _delete_fine_tuning_jobs(session, job_id)
    session.execute(sa.delete(EvalRun).where(col(EvalRun.job_id) == job_id))
    session.execute(sa.delete(JobHost).where(col(JobHost.job_id) == job_id))
    session.execute(sa.delete(JobLabel).where(col(JobLabel.job_id) == job_id))
    session.execute(sa.delete(Job).where(col(Job.id) == job_id))


def _is_retryable(runs: Sequence[Run]) -> bool:
    """Return whether a run has failed or was cancelled; other branches may still be running."""
    status = find_deciding_run(runs).status
    has_ended = any(run.status in RETRYABLE and not run.handled for run in runs)
    return status in (*RETRYABLE, RunStatus.queued, RunStatus.running) and has_ended


def _check_models(session: Session, job_id: str, key_id: str) -> None:
    """Raise the errors of `check_served_use`, and Forbidden for a rescue: the job may be another key's."""
    runs = list_runs(session, job_id)
    if any(OPENAI in split_capabilities(run.capability) for run in runs):
        # It uses the operator's key of OpenAI.
        check_scope(session, key_id, Scope.admin)
    check_served_use(session, key_id, (parse_stage(run.config) for run in runs))
    check_restart(session, AliveWorkers(get_settings()), key_id, job_id)


def _delete_fine_tuning_jobs(session: Session, job_id: str) -> None:
    """Delete what clients of the OpenAI API see of a job; its models and their deployments stay."""
    ids = sa.select(col(FineTuningJob.id)).where(col(FineTuningJob.job_id) == job_id).scalar_subquery()
    of_job = col(FineTuningCheckpoint.fine_tuning_job_id).in_(ids)
    session.execute(sa.delete(FineTuningCheckpoint).where(of_job))
    session.execute(sa.delete(FineTuningJob).where(col(FineTuningJob.job_id) == job_id))


def _delete_evaluations(session: Session, job_id: str) -> None:
    """Delete the evaluations of a job; raises InUse while an unfinished job compares one of them.

    The rows are locked before the check, so that a job which names one waits for its result.
    """
    statement = sa.select(col(Evaluation.id)).where(col(Evaluation.job_id) == job_id).with_for_update()
    evaluations = session.scalars(statement).all()
    for evaluation_id in evaluations:
        if users := list_unfinished_jobs(session, evaluation_id):
            raise InUse(
                f"The evaluation {evaluation_id} of job {job_id} is used by the unfinished job {users[0]}.",
                hint="Wait until it has finished, or cancel it.",
                used_by=users,
            )
    session.execute(sa.delete(EvaluationScore).where(col(EvaluationScore.evaluation_id).in_(evaluations)))
    session.execute(sa.delete(Evaluation).where(col(Evaluation.job_id) == job_id))


def _act(session: Session, job_id: str, action: Action, values: dict[str, Any] | None = None) -> Job:
    """Move the runs of a job by the transitions of an action; raises JobNotFound and JobStatusConflict."""
    runs = _lock_runs(session, job_id)
    status = find_deciding_run(runs).status
    if status in action.done:
        return get_job(session, job_id)
    if status not in action.transitions:
        raise _conflict(job_id, status, tuple(action.transitions), action.participle)
    for run in runs:
        if (to := action.transitions.get(run.status)) is not None:
            # None of them is moved if the one before it was: a cancelled run ends those that need it.
            lifecycle.move(session, run.id, to, sources=[run.status], values=values)
    return get_job(session, job_id)


def _lock_runs(session: Session, job_id: str) -> Sequence[Run]:
    """Return the runs of a job in order, as they are now, and keep others from changing them."""
    get_job(session, job_id)
    of_job = sa.select(Run).where(col(Run.job_id) == job_id).order_by(col(Run.position)).with_for_update()
    runs = session.scalars(of_job.execution_options(populate_existing=True)).all()
    if not runs:
        # It was deleted after the first check.
        session.expire_all()
        get_job(session, job_id)
    return runs


def _conflict(
    job_id: str, status: RunStatus, allowed: Sequence[RunStatus], participle: str
) -> JobStatusConflict:
    *others, last = allowed
    names = f"{', '.join(others)} or {last}" if others else str(last)
    return JobStatusConflict(
        f"The status of job {job_id} is {status}; only a job that is {names} can be {participle}."
    )
