"""Replays and differences of jobs over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Body, Path, Query

from app.http.auth import CallerDependency
from app.jobs import service
from app.jobs.replays.difference import compare_jobs
from app.jobs.replays.examples import REPLAY_EXAMPLES
from app.jobs.replays.schemas import JobDifferenceView, ReplayCreate
from app.jobs.replays.spec import make_replay
from app.jobs.schemas import JobView
from app.settings import get_settings
from app.storage.database import ReadSession, WriteSession

router = APIRouter(prefix="/jobs", tags=["jobs"])


@router.post("/{job_id}/replay", status_code=201)
def replay_job(
    job_id: Annotated[str, Path(description="Id of the job, `job_…`.")],
    replay: Annotated[ReplayCreate, Body(openapi_examples=REPLAY_EXAMPLES)],
    session: WriteSession,
    caller: CallerDependency,
) -> JobView:
    """Queue a job again as a new one: with the same datasets, model revisions and settings, or with changes.

    On a CPU with the same versions, a training stage without changes produces the same weights, bit by bit.
    """
    job = service.get_job(session, job_id)
    spec = make_replay(job, service.list_runs(session, job_id), replay)
    new, _ = service.create_job(session, get_settings(), spec, caller.key_id, None)
    return service.view_job(session, get_settings(), new)


@router.get("/diff")
def diff_jobs(
    session: ReadSession,
    a: Annotated[str, Query(description="Id of a job.")],
    b: Annotated[str, Query(description="Id of another job.")],
) -> JobDifferenceView:
    """Compare two jobs stage by stage: configs, data, code, versions and metrics."""
    runs_a, runs_b = (service.list_runs(session, service.get_job(session, job).id) for job in (a, b))
    return compare_jobs(a, runs_a, b, runs_b)
