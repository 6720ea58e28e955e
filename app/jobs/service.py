"""Creating, reading and planning jobs."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col

from app.hosts.job_hosts import check_host, insert_job_host, runs_on_host
from app.http.errors import Conflict, NotFound, UnprocessableContent
from app.jobs.graph.resolved_stage import ResolvedStage
from app.jobs.graph.sweeps import expand_sweeps
from app.jobs.inputs import find_deleted_inputs
from app.jobs.resolve import resolve_stages
from app.jobs.row_checks import check_scored_rows
from app.jobs.schemas import (
    DryRunView,
    JobCreate,
    JobView,
    PlannedDatasetView,
    PlannedShareView,
    PlannedStageView,
    job_view,
)
from app.jobs.training_time import list_memory_warnings, list_step_warnings, list_time_warnings
from app.keys.limits import check_served_use
from app.models.templates import check_stage_templates
from app.runs import lifecycle
from app.runs.attempt_outcome import NewEvent
from app.runs.graph import Needs, group_needs, list_needed_names, load_needs
from app.runs.groups.members import list_shown_members
from app.runs.names import make_full_name
from app.runs.schemas import run_view
from app.runs.service import list_warnings
from app.settings import Settings
from app.storage.database import Rows, read_session, transaction
from app.tables import Dataset, Job, JobLabel, Run, RunNeed, Worker
from app.tables.base import new_id, new_row
from app.workers import service as workers
from app.workers.capable import filter_capable_workers
from app.workers.waiting import explain_waiting
from trainers.configs import AnyStage, StageKind
from trainers.configs.backends.choice import describe_backend
from trainers.configs.clouds.offers import HostSpec
from trainers.configs.references import ModelField, find_references
from trainers.configs.resume_guarantee import get_resume_guarantee
from trainers.configs.stages.evaluate import EvaluateConfig
from trainers.data.mixture import describe_repeats
from trainers.runtime.error_codes import ErrorCode
from trainers.statistics.expected_power import describe_expected_power

# The kinds of stages that have warnings of their own, and the codes of these.
_WARNING_CODES = {StageKind.gate: "gate_weak", StageKind.promote: "promotion_slow"}


class JobNotFound(NotFound):
    """No job has this id."""

    code = ErrorCode.job_not_found


class IdempotencyKeyReused(Conflict):
    """The idempotency key was used with another body."""

    code = ErrorCode.idempotency_key_reused


def submit_job(
    settings: Settings, spec: JobCreate, created_by: str, idempotency_key: str | None
) -> tuple[JobView, bool]:
    """Commit a job; return its view, and whether an earlier request had created it. See `create_job`.

    The view, which counts the runs ahead, is read after the commit, so that other writers do not wait for it.
    """
    alive = workers.AliveWorkers(settings)
    with transaction() as session:
        created = _create(session, settings, alive, spec, created_by, idempotency_key)
    with read_session() as session:
        if not created.runs:
            return view_job(session, settings, created.job), True
        needs = group_needs(created.needs)
        return _view(session, alive, created.job, created.runs, needs, deleted_inputs=[]), False


def create_job(
    session: Session, settings: Settings, spec: JobCreate, created_by: str, idempotency_key: str | None
) -> tuple[Job, bool]:
    """Queue a job; return it, and whether an earlier request with this idempotency key had created it.

    Raises the errors of `resolve_stages` and `check_served_use`, TemplateUnusable and IdempotencyKeyReused.
    """
    alive = workers.AliveWorkers(settings)
    created = _create(session, settings, alive, spec, created_by, idempotency_key)
    return created.job, not created.runs


class _Created(NamedTuple):
    """A job with the rows that were inserted for it, which are none if an earlier request had created it."""

    job: Job
    runs: Sequence[Run] = ()
    needs: Sequence[RunNeed] = ()


def _create(
    session: Session,
    settings: Settings,
    alive: workers.AliveWorkers,
    spec: JobCreate,
    created_by: str,
    idempotency_key: str | None,
) -> _Created:
    check_stage_templates(spec.stages)
    check_scored_rows(spec.stages)
    body = spec.model_dump(mode="json", exclude_unset=True)
    spec_sha256 = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    if (existing := _find_by_idempotency_key(session, created_by, idempotency_key, spec_sha256)) is not None:
        return _Created(existing)
    stages = _resolve(session, spec, settings, alive)
    check_served_use(session, created_by, [stage.config for stage in stages])
    offer = check_host(session, alive, created_by, spec.host, stages) if spec.host is not None else None
    job = new_row(
        Job,
        name=spec.name,
        labels=spec.labels,
        priority=spec.priority,
        spec=body,
        spec_sha256=spec_sha256,
        created_by=created_by,
        idempotency_key=idempotency_key,
    )
    # In the order of the stages, which is also that of locks: see `actions`.
    ids = sorted(new_id("run") for _ in stages)
    runs = [_new_run(job, position, stage, ids[position]) for position, stage in enumerate(stages)]
    ids_by_name = {run.name: run.id for run in runs}
    needs = [
        RunNeed(run_id=run.id, needed_id=ids_by_name[need.name], required_status=need.required_status)
        for run, stage in zip(runs, stages, strict=True)
        for need in stage.needs
    ]
    warnings = {
        run.id: [NewEvent.warning(_WARNING_CODES[stage.kind], warning) for warning in stage.warnings]
        for run, stage in zip(runs, stages, strict=True)
    }
    if offer is not None:
        for run, stage in zip(runs, stages, strict=True):
            run.own_host = runs_on_host(stage)
    labels = [{"job_id": job.id, "key": key, "value": value} for key, value in job.labels.items()]
    before: Rows = {Job: [job.model_dump()], JobLabel: labels}
    try:
        # Only a key can be violated; a savepoint costs two round trips.
        with session.begin_nested() if idempotency_key is not None else nullcontext():
            lifecycle.create_runs(session, runs, needs, warnings, before)
    except IntegrityError:
        # Another request with this key was committed first: its job is the result of both.
        existing = _find_by_idempotency_key(session, created_by, idempotency_key, spec_sha256)
        assert existing is not None, "the idempotency key is the only unique column"
        return _Created(existing)
    if spec.host is not None and offer is not None:
        insert_job_host(session, job.id, spec.host, offer)
    return _Created(job, runs, needs)


def dry_run(session: Session, settings: Settings, spec: JobCreate, key_id: str) -> DryRunView:
    """Return the plan for a job without queueing it.

    Raises the errors of `resolve_stages` and `check_served_use`, and TemplateUnusable.
    """
    check_stage_templates(spec.stages)
    check_scored_rows(spec.stages)
    alive = workers.AliveWorkers(settings)
    resolved = _resolve(session, spec, settings, alive)
    check_served_use(session, key_id, [stage.config for stage in resolved])
    if spec.host is not None:
        check_host(session, alive, key_id, spec.host, resolved)
    stages = [_planned_stage_view(stage, alive.read(session), spec.host) for stage in resolved]
    return DryRunView(name=spec.name, labels=spec.labels, priority=spec.priority, stages=stages)


def _resolve(
    session: Session, spec: JobCreate, settings: Settings, alive: workers.AliveWorkers
) -> list[ResolvedStage]:
    """Resolve the stages of a job, with a stage for each run of a sweep."""
    expanded = expand_sweeps(spec, settings)
    try:
        return resolve_stages(session, expanded.spec, settings, alive)
    except UnprocessableContent as error:
        raise expanded.restore_fields(error) from error


def get_job(session: Session, job_id: str) -> Job:
    """Return the job; raises JobNotFound."""
    job = session.get(Job, job_id)
    if job is None:
        raise JobNotFound(f"There is no job {job_id}.", hint="List jobs with GET /api/v1/jobs.")
    return job


def list_runs(session: Session, job_id: str) -> Sequence[Run]:
    """Return the job's runs in order, as the database has them now."""
    statement = select(Run).where(col(Run.job_id) == job_id).order_by(col(Run.position))
    return session.scalars(statement.execution_options(populate_existing=True)).all()


def view_job(session: Session, settings: Settings, job: Job) -> JobView:
    """Build the view of a job, with its runs and what they wait for; raises JobNotFound."""
    job_id = job.id
    runs = list_runs(session, job_id)
    if not runs:
        # It was deleted after it was read.
        session.expire_all()
        get_job(session, job_id)
    alive, needs = workers.AliveWorkers(settings), load_needs(session, job_id)
    return _view(session, alive, job, runs, needs, find_deleted_inputs(session, runs))


def _view(
    session: Session,
    alive: workers.AliveWorkers,
    job: Job,
    runs: Sequence[Run],
    needs: Needs,
    deleted_inputs: list[str],
) -> JobView:
    waiting = explain_waiting(session, alive, runs, needs)
    needed = list_needed_names(runs, needs)
    members = list_shown_members(session, runs)
    views = [run_view(run, waiting.get(run.id), needed[run.id], members.get(run.id, [])) for run in runs]
    return job_view(job, runs, views, deleted_inputs, list_warnings(session, runs))


def _find_by_idempotency_key(
    session: Session, created_by: str, idempotency_key: str | None, spec_sha256: str
) -> Job | None:
    if idempotency_key is None:
        return None
    statement = select(Job).where(
        col(Job.created_by) == created_by, col(Job.idempotency_key) == idempotency_key
    )
    job = session.scalars(statement).one_or_none()
    if job is not None and job.spec_sha256 != spec_sha256:
        raise IdempotencyKeyReused(
            f"Idempotency-Key {idempotency_key!r} has already created {job.id} with another body.",
            hint="Send a new key for a new job.",
        )
    return job


def _new_run(job: Job, position: int, stage: ResolvedStage, run_id: str) -> Run:
    return new_row(
        Run,
        id=run_id,
        job_id=job.id,
        position=position,
        name=stage.name,
        full_name=make_full_name(job.name, stage.name),
        stage=stage.kind,
        queue=stage.queue,
        priority=job.priority,
        config=stage.config.model_dump(mode="json"),
        device_count=stage.config.device_count,
        nodes=stage.config.node_count,
        capability=stage.config.capability,
    )


def _planned_stage_view(
    stage: ResolvedStage, alive_workers: Sequence[Worker], host: HostSpec | None
) -> PlannedStageView:
    models = [ref for ref in find_references(stage.config) if isinstance(ref, ModelField)]
    dataset = stage.datasets.get("dataset")
    needs = stage.queue, stage.kind, stage.config.device_count, stage.config.capability
    nodes = stage.config.node_count
    if host is not None and runs_on_host(stage):
        capable: list[Worker] = []
        waiting_for: str | None = f"A host {host.type} of {host.cloud}, which is launched for the job."
    else:
        capable = filter_capable_workers(alive_workers, *needs)
        waiting_for = workers.explain_missing_worker(alive_workers, *needs, nodes)
    return PlannedStageView(
        name=stage.name,
        stage=stage.kind,
        queue=stage.queue,
        queue_reason=stage.queue_reason,
        backend=describe_backend(stage.config, stage.queue),
        needs=[need.name for need in stage.needs],
        when=stage.config.when,
        config=stage.config.model_dump(mode="json"),
        models={reference.path: reference.value for reference in models},
        dataset=dataset
        and PlannedDatasetView(
            id=dataset.id, name=dataset.name, sha256=dataset.sha256, rows=dataset.row_count
        ),
        mixture=[
            PlannedShareView(
                id=each.id,
                name=each.name,
                sha256=each.sha256,
                rows=each.row_count,
                epoch_rows=rows,
                repeats=describe_repeats(rows, each.row_count),
            )
            for each, rows in stage.mixture
        ],
        estimated_steps=stage.estimated_steps,
        power=_describe_power(stage.config, dataset),
        resume_guarantee=get_resume_guarantee(stage.config, stage.queue),
        workers=[worker.name for worker in capable],
        waiting_for=waiting_for,
        warnings=[
            *list_time_warnings(stage, capable),
            *list_memory_warnings(stage, capable),
            *list_step_warnings(stage),
            *stage.warnings,
        ],
    )


def _describe_power(config: AnyStage, dataset: Dataset | None) -> str | None:
    if not isinstance(config, EvaluateConfig) or len(config.models) < 2 or dataset is None:
        return None
    return describe_expected_power(min(dataset.row_count, config.max_rows or dataset.row_count))
