"""The list of fine-tuning jobs, and the page of one: its files, checkpoints and events, and its own run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Path, Query, Request, Response
from sqlmodel import Session

from app.files.service import find_files
from app.fine_tuning import actions, service
from app.fine_tuning.checkpoints import list_checkpoints
from app.fine_tuning.events import FineTuningEvent, list_events
from app.http.paging import DEFAULT_LIMIT, CursorQuery
from app.jobs.actions import ActionState
from app.openai_api.fine_tuning.schemas import JobStatus, view_status
from app.runs.schemas import RunSummaryView, RunView, run_summary_view
from app.runs.service import view_run
from app.settings import get_settings
from app.storage.database import ReadSession, WriteSession
from app.tables import File, FineTuningCheckpoint, FineTuningJob
from app.web.live import LiveView, Parts, Version, show_changes, stream_view
from app.web.rendering import render_macro, render_page
from app.web.url_state import ListFilters, encode_query
from app.web.views.openai_api.examples import FINE_TUNING, fill_example
from app.web.visitor import CurrentVisitor, Visitor, view_router

PARTS = "fine_tuning/parts.jinja"
# A job has one for each of its last epochs.
MAX_CHECKPOINTS = 50
JOB_ID = r"^ftjob-[0-9A-Za-z]{1,60}$"

router = view_router()

FineTuningJobId = Annotated[str, Path(pattern=JOB_ID)]


@dataclass(frozen=True)
class FineTuningFilters(ListFilters):
    """The filter of the list, and the position in it, which are in the URL."""

    metadata: str
    after: str | None

    def pairs(self) -> dict[str, str]:
        """Return the pair that jobs must have in their metadata."""
        key, colon, value = self.metadata.partition(":")
        return {key.strip(): value.strip()} if colon else {}


@dataclass(frozen=True)
class FineTuningRow:
    """A fine-tuning job in the list."""

    job: FineTuningJob
    status: JobStatus
    run: RunSummaryView


@dataclass(frozen=True)
class FineTuningList:
    """The fine-tuning jobs of a page of the list."""

    rows: Sequence[FineTuningRow]
    next: str | None


@dataclass(frozen=True)
class FineTuningDetails:
    """A fine-tuning job with its files, checkpoints, events of one page, and what can be done with it."""

    job: FineTuningJob
    status: JobStatus
    run: RunView
    actions: Sequence[ActionState]
    files: Mapping[str, File]
    checkpoints: Sequence[FineTuningCheckpoint]
    events: Sequence[FineTuningEvent]
    next: str | None


@dataclass(frozen=True)
class EventQuery:
    """The shown events of a job: with those of each step or without, and the position among them."""

    metrics: bool
    after: str | None

    def query(self, **changes: object) -> str:
        """Return the query of the page with other values."""
        values = {**vars(self), **changes}
        return encode_query({**values, "metrics": "true" if values["metrics"] else None})


def list_filters(
    metadata: Annotated[str, Query(max_length=600)] = "",
    after: Annotated[str | None, Query(pattern=JOB_ID)] = None,
) -> FineTuningFilters:
    """Return the filters of a request."""
    return FineTuningFilters(metadata.strip(), after)


def event_query(
    metrics: bool = False,
    after: Annotated[str | None, Query(pattern=r"^ftevent-[0-9A-Za-z]{1,80}$")] = None,
) -> EventQuery:
    """Return the events that a request asks for."""
    return EventQuery(metrics, after)


Filters = Annotated[FineTuningFilters, Depends(list_filters)]
Events = Annotated[EventQuery, Depends(event_query)]


@router.get("/fine-tuning")
def list_jobs(request: Request, session: ReadSession, visitor: CurrentVisitor, filters: Filters) -> Response:
    """Show the fine-tuning jobs, newest first."""
    view = _list_view(request, filters)
    state = view.load(session)
    parts = view.render(state, visitor)
    return render_page(request, "fine_tuning/list.jinja", state=state, parts=parts, filters=filters)


@router.get("/fine-tuning/stream")
def stream_jobs(request: Request, filters: Filters, version: Version = "") -> Response:
    """Stream the rows that change."""
    return stream_view(request, _list_view(request, filters), version)


@router.get("/fine-tuning/{job_id}")
def show_job(
    request: Request, session: ReadSession, visitor: CurrentVisitor, job_id: FineTuningJobId, shown: Events
) -> Response:
    """Show a fine-tuning job."""
    view = _page_view(job_id, shown)
    state = view.load(session)
    parts = view.render(state, visitor)
    return render_page(request, "fine_tuning/page.jinja", state=state, parts=parts, shown=shown)


@router.get("/fine-tuning/{job_id}/stream")
def stream_job(request: Request, job_id: FineTuningJobId, shown: Events, version: Version = "") -> Response:
    """Stream the parts of the job's page that change."""
    return stream_view(request, _page_view(job_id, shown), version)


@router.post("/fine-tuning/{job_id}/pause")
def pause_job(
    request: Request, session: WriteSession, visitor: CurrentVisitor, job_id: FineTuningJobId
) -> Response:
    """Pause a fine-tuning job after a checkpoint."""
    actions.pause_job(session, job_id)
    return _show_page(request, session, visitor, job_id)


@router.post("/fine-tuning/{job_id}/resume")
def resume_job(
    request: Request, session: WriteSession, visitor: CurrentVisitor, job_id: FineTuningJobId
) -> Response:
    """Continue a paused fine-tuning job from its checkpoint."""
    assert visitor.caller is not None
    actions.resume_job(session, job_id, visitor.caller.key_id)
    return _show_page(request, session, visitor, job_id)


@router.post("/fine-tuning/{job_id}/cancel")
def cancel_job(
    request: Request, session: WriteSession, visitor: CurrentVisitor, job_id: FineTuningJobId
) -> Response:
    """Cancel a fine-tuning job."""
    actions.cancel_job(session, job_id)
    return _show_page(request, session, visitor, job_id)


def _show_page(request: Request, session: Session, visitor: Visitor, job_id: str) -> Response:
    view = _page_view(job_id, EventQuery(False, None), with_events=False)
    return show_changes(request, session, visitor, view, f"/fine-tuning/{job_id}")


def _list_view(request: Request, filters: FineTuningFilters) -> LiveView[FineTuningList]:
    def load(session: Session) -> FineTuningList:
        cursor = CursorQuery(DEFAULT_LIMIT, filters.after)
        found, has_more = service.list_states(session, cursor, filters.pairs(), without_metadata=False)
        rows = [FineTuningRow(each.job, view_status(each.run), run_summary_view(each.run)) for each in found]
        return FineTuningList(rows, found[-1].job.id if has_more else None)

    def render(state: FineTuningList, visitor: Visitor) -> Parts:
        language = visitor.language
        rows = {f"row-{each.job.id}": render_macro(language, PARTS, "row", each) for each in state.rows}
        empty = render_macro(language, PARTS, "empty_row", filters, fill_example(FINE_TUNING, request))
        return Parts(rows=rows, table="fine-tuning-jobs", empty=empty)

    return LiveView(load, render)


def _page_view(job_id: str, shown: EventQuery, *, with_events: bool = True) -> LiveView[FineTuningDetails]:
    def load(session: Session) -> FineTuningDetails:
        state = service.get_state(session, job_id)
        job = state.job
        cursor = CursorQuery(DEFAULT_LIMIT, shown.after)
        events, has_more = list_events(session, state, cursor, with_metrics=shown.metrics)
        checkpoints, _ = list_checkpoints(session, job, CursorQuery(MAX_CHECKPOINTS))
        return FineTuningDetails(
            job=job,
            status=view_status(state.run),
            run=view_run(session, get_settings(), state.run.id),
            actions=actions.list_actions(session, state),
            files=find_files(session, [job.training_file, job.validation_file, job.result_file_id]),
            checkpoints=checkpoints,
            events=events,
            next=events[-1].id if has_more else None,
        )

    def render(state: FineTuningDetails, visitor: Visitor) -> Parts:
        language = visitor.language
        names = ("head", "facts", "files", "checkpoints")
        parts = {f"job-{name}": render_macro(language, PARTS, name, state, visitor) for name in names}
        if not with_events:
            return Parts(parts=parts)
        rows = {each.id: render_macro(language, PARTS, "event", each) for each in state.events}
        return Parts(parts=parts, rows=rows, table="events")

    return LiveView(load, render)
