"""Jobs over HTTP."""

from functools import partial
from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Body, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import Field

from app.http.auth import CallerDependency
from app.http.paging import Page, Paging
from app.idempotency.creation import Creation
from app.jobs import actions, listing, preflight, service, stream
from app.jobs.examples import JOB_EXAMPLES, PREFLIGHT_EXAMPLES
from app.jobs.schemas import (
    MAX_RUNS,
    DryRunView,
    JobCreate,
    JobSummaryView,
    JobView,
    PreflightOptions,
    PreflightView,
)
from app.runs.stream import MEDIA_TYPE, STREAM_HEADERS, stream_events
from app.settings import get_settings
from app.storage.database import ReadSession, WriteSession
from app.tables import RunStatus

router = APIRouter(prefix="/jobs", tags=["jobs"])

# Numbers of events, one for each run.
POSITION = rf"^[0-9]{{1,10}}(\.[0-9]{{1,10}}){{0,{MAX_RUNS - 1}}}$"
MAX_POSITION = 11 * MAX_RUNS
JOB_EVENT_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Server-sent events: `id` is the position in the stream, the number of the last event "
        "of each run (`12.3`), `event` the type and `data` the event as JSON, with its run. The last one is "
        "`event: end`, with the job's status.",
        "content": {MEDIA_TYPE: {"schema": {"type": "string"}}},
    }
}

JobId = Annotated[str, Path(description="Id of the job, `job_…`.")]
Spec = Annotated[JobCreate, Body(openapi_examples=JOB_EXAMPLES)]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        description="A key of your choice. A second request with the same key and body returns 200 with the "
        "job of the first, so that a client can safely repeat a request.",
    ),
]
# Requests beyond these wait in the order of their arrival (docs/decisions/0039).
SUBMISSIONS = CapacityLimiter(4)
REPLAY: dict[int | str, dict[str, Any]] = {
    200: {"model": JobView, "description": "The job that this Idempotency-Key has already created."}
}


@router.post("", status_code=201, responses=REPLAY)
async def create_job(
    spec: Spec,
    caller: CallerDependency,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> JobView:
    """Queue a job: stages, each of which starts on its hardware when those that it needs have succeeded."""
    job, exists = await to_thread.run_sync(
        service.submit_job, get_settings(), spec, caller.key_id, idempotency_key, limiter=SUBMISSIONS
    )
    if exists:
        response.status_code = 200
        response.headers["Idempotent-Replay"] = "true"
    return job


@router.post("/dry-run")
def dry_run_job(spec: Spec, session: ReadSession, caller: CallerDependency) -> DryRunView:
    """Return the plan for a job, with every default resolved, without queueing it."""
    return service.dry_run(session, get_settings(), spec, caller.key_id)


@router.post("/preflight", status_code=201)
def create_preflight(
    spec: Annotated[JobCreate, Body(openapi_examples=PREFLIGHT_EXAMPLES)],
    caller: CallerDependency,
    options: Annotated[PreflightOptions, Query()],
    creation: Creation,
) -> PreflightView:
    """Queue short runs that check the data, settings and memory of a job's training stages."""
    settings = get_settings()
    job_id = creation.once(partial(preflight.submit_preflight, settings, spec, options, caller.key_id))
    return preflight.read_preflight(settings, job_id, spec, options)


@router.get("")
def list_jobs(
    session: ReadSession,
    paging: Paging,
    status: Annotated[RunStatus | None, Query(description="Return only jobs with this status.")] = None,
    name: Annotated[str | None, Query(description="Return only jobs with exactly this name.")] = None,
    label: Annotated[
        list[Annotated[str, Field(json_schema_extra={"pattern": "^[^:]*:"})]] | None,
        Query(description="`key:value`; a job must have all labels that are given."),
    ] = None,
    search: Annotated[
        str | None,
        Query(
            max_length=200,
            description="Return only jobs whose name contains this text, in any case; only the newest "
            "100,000 jobs are searched.",
        ),
    ] = None,
) -> Page[JobSummaryView]:
    """List jobs, newest first."""
    jobs, after = listing.list_jobs(session, paging, status, name, label or [], search)
    return Page(items=jobs, next=after)


@router.get("/{job_id}")
def get_job(job_id: JobId, session: ReadSession) -> JobView:
    """Return a job with its runs, their progress, and what they wait for."""
    return service.view_job(session, get_settings(), service.get_job(session, job_id))


@router.get("/{job_id}/stream", responses=JOB_EVENT_STREAM, response_class=StreamingResponse)
def stream_job(
    job_id: JobId,
    request: Request,
    after: Annotated[
        str,
        Query(pattern=POSITION, max_length=MAX_POSITION, description="Start after the event with this `id`."),
    ] = "0",
    last_event_id: Annotated[
        str | None,
        Header(
            pattern=POSITION,
            max_length=MAX_POSITION,
            description="As `after`; sent by a client that reconnects.",
        ),
    ] = None,
) -> StreamingResponse:
    """Stream the events of all runs of a job; a client that reconnects with `Last-Event-ID` misses none."""
    poll = partial(stream.poll_job_events, job_id)
    position = stream.parse_position(
        *((after, "after") if last_event_id is None else (last_event_id, "last-event-id"))
    )
    events = stream_events(poll, poll(position), request.app.state.stopping)
    return StreamingResponse(events, media_type=MEDIA_TYPE, headers=STREAM_HEADERS)


@router.delete("/{job_id}", status_code=204)
def delete_job(job_id: JobId, session: WriteSession) -> None:
    """Delete a finished job with its runs, events, checkpoints and files; the models and datasets remain.

    The records disappear at once, and the files with the next collection. Deleting it again returns 404.
    """
    actions.delete(session, job_id)


@router.post("/{job_id}/cancel")
def cancel_job(job_id: JobId, session: WriteSession) -> JobView:
    """Cancel a job; cancelling it again changes nothing."""
    return service.view_job(session, get_settings(), actions.cancel(session, job_id))


@router.post("/{job_id}/pause")
def pause_job(job_id: JobId, session: WriteSession) -> JobView:
    """Stop a job after a checkpoint, so that it can be resumed."""
    return service.view_job(session, get_settings(), actions.pause(session, job_id))


@router.post("/{job_id}/resume")
def resume_job(job_id: JobId, session: WriteSession, caller: CallerDependency) -> JobView:
    """Queue a paused job again; it continues from its last checkpoint."""
    return service.view_job(session, get_settings(), actions.resume(session, job_id, caller.key_id))


@router.post("/{job_id}/retry")
def retry_job(job_id: JobId, session: WriteSession, caller: CallerDependency) -> JobView:
    """Queue a failed or cancelled job again, from the stage that failed or was cancelled."""
    return service.view_job(session, get_settings(), actions.retry(session, job_id, caller.key_id))
