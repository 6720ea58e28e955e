"""Posting, finding and showing jobs."""

import hashlib
import json
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col

from app.http.errors import Conflict, NotFound
from app.jobs.resolve import ResolvedStage, resolve_stages
from app.jobs.schemas import DryRunView, JobCreate, JobView, PlannedDatasetView, PlannedStageView
from app.runs import lifecycle
from app.runs.schemas import run_view
from app.settings import Settings
from app.tables import Job, JobLabel, Run, RunStatus, Worker
from app.workers import service as workers
from trainers.configs.references import ReferenceKind, find_references
from trainers.configs.resume_guarantee import get_resume_guarantee
from trainers.runtime.error_codes import ErrorCode


class JobNotFound(NotFound):
    """No job has this id."""

    code = ErrorCode.job_not_found


class IdempotencyKeyReused(Conflict):
    """The key was sent before with another body."""

    code = ErrorCode.idempotency_key_reused


def create_job(
    session: Session, settings: Settings, spec: JobCreate, created_by: str, idempotency_key: str | None
) -> tuple[Job, bool]:
    """Queue a job and answer it with False, or with True the job that this key has queued before.

    Raises what `resolve` raises, and IdempotencyKeyReused.
    """
    body = spec.model_dump(mode="json", exclude_unset=True)
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    if (before := _posted_before(session, created_by, idempotency_key, digest)) is not None:
        return before, True
    stages = resolve_stages(session, spec, settings)
    job = Job(
        name=spec.name,
        labels=spec.labels,
        priority=spec.priority,
        spec=body,
        spec_sha256=digest,
        created_by=created_by,
        idempotency_key=idempotency_key,
    )
    try:
        with session.begin_nested():
            session.add(job)
    except IntegrityError:
        # Another request with this key was first and is committed now: it is the one to answer.
        winner = _posted_before(session, created_by, idempotency_key, digest)
        assert winner is not None, "only the idempotency key can collide"
        return winner, True
    _queue(session, job, stages)
    return job, False


def dry_run(session: Session, settings: Settings, spec: JobCreate) -> DryRunView:
    """What the job would do, without queueing it; raises what `resolve` raises."""
    living = workers.list_alive_workers(session, settings)
    stages = [_planned(stage, living) for stage in resolve_stages(session, spec, settings)]
    return DryRunView(name=spec.name, labels=spec.labels, priority=spec.priority, stages=stages)


def get_job(session: Session, job_id: str) -> Job:
    """The job of this id; raises JobNotFound."""
    job = session.get(Job, job_id)
    if job is None:
        raise JobNotFound(f"There is no job {job_id}.", hint="List jobs with GET /api/v1/jobs.")
    return job


def list_runs(session: Session, job_id: str) -> Sequence[Run]:
    """The job's runs in order, as the database has them now."""
    statement = select(Run).where(col(Run.job_id) == job_id).order_by(col(Run.position))
    return session.scalars(statement.execution_options(populate_existing=True)).all()


def current_run(runs: Sequence[Run]) -> Run:
    """The run that decides the job's status: the first that has not succeeded, else the last."""
    return next((run for run in runs if run.status is not RunStatus.succeeded), runs[-1])


def view_job(session: Session, settings: Settings, job: Job) -> JobView:
    """A job with its runs and what they wait for."""
    runs = list_runs(session, job.id)
    waits = workers.explain_waiting(session, settings, runs)
    current = current_run(runs)
    return JobView(
        **job.model_dump(include={"id", "name", "labels", "priority", "spec", "created_at"}),
        created_by=job.created_by or None,
        status=current.status,
        error=current.error,
        runs=[run_view(run, waits.get(run.id)) for run in runs],
    )


def _posted_before(session: Session, created_by: str, idempotency_key: str | None, digest: str) -> Job | None:
    if idempotency_key is None:
        return None
    same = col(Job.created_by) == created_by, col(Job.idempotency_key) == idempotency_key
    job = session.scalars(select(Job).where(*same)).one_or_none()
    if job is not None and job.spec_sha256 != digest:
        raise IdempotencyKeyReused(
            f"Idempotency-Key {idempotency_key!r} has already posted {job.id} with another body.",
            hint="Send a new key for a new job.",
        )
    return job


def _queue(session: Session, job: Job, stages: Sequence[ResolvedStage]) -> None:
    """Write the job's labels and runs, and the event that each run is queued."""
    session.add_all(JobLabel(key=key, value=value, job_id=job.id) for key, value in job.labels.items())
    runs = [
        Run(
            job_id=job.id,
            position=position,
            name=stage.name,
            stage=stage.kind,
            queue=stage.queue,
            priority=job.priority,
            config=stage.stored_config,
            device_count=stage.config.device_count,
        )
        for position, stage in enumerate(stages)
    ]
    lifecycle.create_runs(session, runs)


def _planned(stage: ResolvedStage, living: Sequence[Worker]) -> PlannedStageView:
    config, dataset = stage.stored_config, stage.datasets.get("dataset")
    references = [ref for ref in find_references(config) if ref.kind is ReferenceKind.model]
    return PlannedStageView(
        name=stage.name,
        stage=stage.kind,
        queue=stage.queue,
        config=config,
        models={reference.path: reference.value for reference in references},
        dataset=dataset
        and PlannedDatasetView(
            id=dataset.id, name=dataset.name, sha256=dataset.sha256, rows=dataset.row_count
        ),
        estimated_steps=stage.estimated_steps,
        resume_guarantee=get_resume_guarantee(stage.kind, stage.queue, config),
        workers=[worker.name for worker in workers.filter_capable_workers(living, stage.queue, stage.kind)],
        waiting_for=workers.explain_missing_worker(stage.queue, stage.kind, living),
    )
