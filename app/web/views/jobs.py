"""The list of jobs, and the page of one job, which leads to its runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import Depends, Path, Query, Request, Response
from sqlmodel import Session

from app.http.paging import PageQuery
from app.jobs import actions, listing, service
from app.jobs.actions import ActionState, JobAction
from app.jobs.listing import JobSort
from app.jobs.schemas import JobSummaryView, JobView
from app.models.starter import StarterProgress, read_starter_progress
from app.settings import get_settings
from app.storage.database import ReadSession, WriteSession
from app.tables import RunStatus
from app.web.live import LiveView, Parts, Version, show_changes, stream_view
from app.web.rendering import go_to, render_macro, render_page
from app.web.url_state import ListFilters, choose_columns, keep_columns
from app.web.views.outcomes import find_evaluations
from app.web.visitor import CurrentVisitor, Visitor, view_router
from app.workers.names import name_workers

COLUMNS = ("stages", "progress", "metric", "started", "duration", "worker", "queue", "labels")
DEFAULT_COLUMNS = ("stages", "progress", "metric", "started", "duration", "worker")
# A job cannot be skipped: at least one of its runs decides its status.
STATUSES = tuple(status for status in RunStatus if status is not RunStatus.skipped)
PARTS = "jobs/parts.jinja"

router = view_router()

JobId = Annotated[str, Path(pattern=r"^job_[0-9a-z]{1,40}$")]


@dataclass(frozen=True)
class JobFilters(ListFilters):
    """The filters of the list, all of which are in the URL."""

    status: RunStatus | None
    label: Sequence[str]
    search: str
    after: str | None
    columns: Sequence[str]
    sort: JobSort | None = None
    """Of the newest jobs; without it, all are listed, newest first."""

    def query(self, **changes: object) -> str:
        """Return the query of this list, which names each of its columns."""
        return super().query(columns=None, **{"column": self.columns, **changes})

    @property
    def is_filtered(self) -> bool:
        """Whether a filter may hide rows; columns are none."""
        return bool(self.query(column=None, sort=None))


@dataclass(frozen=True)
class JobList:
    """The jobs of a page of the list, with the names of their workers."""

    jobs: Sequence[JobSummaryView]
    next: str | None
    workers: dict[str, str]
    training: StarterProgress | None
    """Of the example model, which jobs cannot use yet."""


@dataclass(frozen=True)
class JobState:
    """A job, what can be done with it, and the names of its workers."""

    job: JobView
    actions: Sequence[ActionState]
    workers: dict[str, str]
    evaluations: Mapping[str, str]


def job_filters(
    request: Request,
    status: Literal[""] | RunStatus | None = None,
    label: Annotated[list[str] | None, Query(max_length=20)] = None,
    search: Annotated[str, Query(max_length=200)] = "",
    sort: Literal[""] | JobSort | None = None,
    after: Annotated[str | None, Query(pattern=r"^job_[0-9a-z]{26}$")] = None,
) -> JobFilters:
    """Return the filters of a request; an empty field of the form is no filter."""
    columns = choose_columns(request, "jobs", COLUMNS, DEFAULT_COLUMNS)
    labels = [each for each in label or [] if each]
    return JobFilters(status or None, labels, search.strip(), after, columns, sort or None)


Filters = Annotated[JobFilters, Depends(job_filters)]


@router.get("/jobs")
def list_jobs(request: Request, session: ReadSession, visitor: CurrentVisitor, filters: Filters) -> Response:
    """Show the jobs, newest first."""
    view = _list_view(filters)
    state = view.load(session)
    parts = view.render(state, visitor)
    response = render_page(
        request,
        "jobs/list.jinja",
        state=state,
        parts=parts,
        filters=filters,
        columns=COLUMNS,
        statuses=STATUSES,
        sorts=list(listing.JobSort),
        max_sorted=listing.MAX_SORTED_JOBS,
    )
    keep_columns(request, response, "jobs", filters.columns)
    return response


@router.get("/jobs/stream")
def stream_jobs(request: Request, filters: Filters, version: Version = "") -> Response:
    """Stream the rows that change."""
    return stream_view(request, _list_view(filters), version)


@router.get("/jobs/{job_id}")
def show_job(request: Request, session: ReadSession, visitor: CurrentVisitor, job_id: JobId) -> Response:
    """Show a job with its runs."""
    view = _job_view(job_id)
    state = view.load(session)
    return render_page(request, "jobs/page.jinja", state=state, parts=view.render(state, visitor))


@router.get("/jobs/{job_id}/stream")
def stream_job(request: Request, job_id: JobId, version: Version = "") -> Response:
    """Stream the parts of the job's page that change."""
    return stream_view(request, _job_view(job_id), version)


@router.post("/jobs/{job_id}/{action}")
def act_on_job(
    request: Request, session: WriteSession, visitor: CurrentVisitor, job_id: JobId, action: JobAction
) -> Response:
    """Pause, resume, retry, cancel or delete a job, and return to the page from which it was asked for."""
    assert visitor.caller is not None
    match action:
        case JobAction.pause:
            actions.pause(session, job_id)
        case JobAction.resume:
            actions.resume(session, job_id, visitor.caller.key_id)
        case JobAction.retry:
            actions.retry(session, job_id, visitor.caller.key_id)
        case JobAction.cancel:
            actions.cancel(session, job_id)
        case JobAction.delete:
            actions.delete(session, job_id)
            return go_to(request, "/jobs")
    return show_changes(request, session, visitor, _job_view(job_id), f"/jobs/{job_id}")


def _list_view(filters: JobFilters) -> LiveView[JobList]:
    def load(session: Session) -> JobList:
        query, search = PageQuery(after=filters.after), filters.search or None
        if filters.sort is None:
            jobs, after = listing.list_jobs(session, query, filters.status, None, filters.label, search)
        else:
            after = None
            jobs = listing.list_sorted_jobs(
                session, filters.sort, filters.status, filters.label, search, query.limit
            )
        worker_ids = (stage.worker_id for job in jobs for stage in job.stages)
        return JobList(jobs, after, name_workers(session, worker_ids), read_starter_progress())

    def render(state: JobList, visitor: Visitor) -> Parts:
        rows = {
            f"row-{job.id}": render_macro(visitor.language, PARTS, "row", job, filters.columns, state.workers)
            for job in state.jobs
        }
        empty = render_macro(visitor.language, PARTS, "empty_row", filters)
        parts = {"starter": render_macro(visitor.language, "parts.jinja", "starter", state.training)}
        return Parts(parts=parts, rows=rows, table="jobs", empty=empty)

    return LiveView(load, render)


def _job_view(job_id: str) -> LiveView[JobState]:
    return LiveView(lambda session: _load_job(session, job_id), _render_job)


def _load_job(session: Session, job_id: str) -> JobState:
    job = service.view_job(session, get_settings(), service.get_job(session, job_id))
    states = actions.list_actions(service.list_runs(session, job_id))
    workers = name_workers(session, (run.worker_id for run in job.runs))
    return JobState(job, states, workers, find_evaluations(session, job_id))


def _render_job(state: JobState, visitor: Visitor) -> Parts:
    language = visitor.language
    rows = {
        f"row-{run.id}": render_macro(language, PARTS, "run_row", run, state.workers, state.evaluations)
        for run in state.job.runs
    }
    parts = {
        "job-head": render_macro(language, PARTS, "head", state, visitor),
        "job-warnings": render_macro(language, PARTS, "warnings", state.job),
    }
    return Parts(parts=parts, rows=rows, table="runs")
