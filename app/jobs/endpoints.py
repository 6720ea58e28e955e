"""Jobs over HTTP."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Query, Response

from app.http.auth import CallerDependency
from app.http.paging import Page, Paging
from app.jobs import actions, listing, preflight, service
from app.jobs.schemas import (
    EXAMPLES,
    DryRunView,
    JobCreate,
    JobSummaryView,
    JobView,
    PreflightOptions,
    PreflightView,
)
from app.settings import get_settings
from app.storage.database import ReadSession, WriteSession
from app.tables import RunStatus

router = APIRouter(prefix="/jobs", tags=["jobs"])

Spec = Annotated[JobCreate, Body(openapi_examples=EXAMPLES)]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        description="Sent again with the same body, it answers 200 with the job of the first time.",
    ),
]
REPLAY: dict[int | str, dict[str, Any]] = {
    200: {"model": JobView, "description": "The job that this Idempotency-Key has posted before."}
}


@router.post("", status_code=201, responses=REPLAY)
def submit_job(
    spec: Spec,
    session: WriteSession,
    caller: CallerDependency,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> JobView:
    """Queue a job: stages that run one after another, each on the hardware that it names."""
    job, replayed = service.create_job(session, get_settings(), spec, caller.key_id, idempotency_key)
    if replayed:
        response.status_code = 200
        response.headers["Idempotent-Replay"] = "true"
    return service.view_job(session, get_settings(), job)


@router.post("/dry-run")
def dry_run_job(spec: Spec, session: ReadSession) -> DryRunView:
    """What a job would do and use, with every default resolved; nothing is queued."""
    return service.dry_run(session, get_settings(), spec)


@router.post("/preflight", status_code=201)
def preflight_job(
    spec: Spec, session: WriteSession, caller: CallerDependency, options: Annotated[PreflightOptions, Query()]
) -> PreflightView:
    """Queue short runs that judge the data, the settings and the memory of a job's training stages."""
    return preflight.post(session, get_settings(), spec, options, caller.key_id)


@router.get("")
def list_jobs(
    session: ReadSession,
    paging: Paging,
    status: RunStatus | None = None,
    name: Annotated[str | None, Query(description="Exact name.")] = None,
    label: Annotated[list[str] | None, Query(description="`key:value`; of several all must match.")] = None,
) -> Page[JobSummaryView]:
    """Jobs from new to old."""
    items, following = listing.list_jobs(session, paging, status, name, label or [])
    return Page(items=items, next=following)


@router.get("/{job_id}")
def get_job(job_id: str, session: ReadSession) -> JobView:
    """A job with its runs, their progress, and what they wait for."""
    return service.view_job(session, get_settings(), service.get_job(session, job_id))


@router.post("/{job_id}/cancel")
def cancel_job(job_id: str, session: WriteSession) -> JobView:
    """End a job; cancelling it again changes nothing."""
    return service.view_job(session, get_settings(), actions.cancel(session, job_id))


@router.post("/{job_id}/pause")
def pause_job(job_id: str, session: WriteSession) -> JobView:
    """Stop a job after a checkpoint, so that it can be resumed."""
    return service.view_job(session, get_settings(), actions.pause(session, job_id))


@router.post("/{job_id}/resume")
def resume_job(job_id: str, session: WriteSession) -> JobView:
    """Queue a paused job again; it goes on from its last checkpoint."""
    return service.view_job(session, get_settings(), actions.resume(session, job_id))


@router.post("/{job_id}/retry")
def retry_job(job_id: str, session: WriteSession) -> JobView:
    """Queue a failed or cancelled job again from the stage that ended it."""
    return service.view_job(session, get_settings(), actions.retry(session, job_id))
