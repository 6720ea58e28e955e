"""Comparisons of evaluations: asked for, waited for, and shown with the rows that changed first."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from fastapi import Form, Path, Query, Request, Response
from fastapi.responses import RedirectResponse
from sqlmodel import Session

from app.comparisons import service
from app.comparisons.schemas import ComparisonCreate, ComparisonSummaryView, ComparisonView, comparison_view
from app.evaluations.schemas import RowFilter
from app.http.paging import PageQuery
from app.jobs import service as jobs
from app.jobs.schemas import JobView
from app.settings import get_settings
from app.storage.database import ReadSession, WriteSession, read_session
from app.web.errors import parse_form
from app.web.live import LiveView, Parts, Version, stream_view
from app.web.rendering import render_macro, render_page
from app.web.url_state import encode_query
from app.web.views.evaluations.page import Position, RowQuery, list_gates, read_rows, scale_differences
from app.web.visitor import CurrentVisitor, Visitor, view_router

PARTS = "comparisons/parts.jinja"
STORED = "evaluation_"

router = view_router()

ComparisonId = Annotated[str, Path(pattern=r"^comparison_[0-9a-z]{1,40}$")]
JobId = Annotated[str, Query(pattern=r"^(job_[0-9a-z]{1,40})?$")]
After = Annotated[str | None, Query(pattern=r"^comparison_[0-9a-z]{26}$")]


@dataclass(frozen=True)
class ComparisonList:
    """The comparisons of a page of the list, and the job that computes the one that was asked for."""

    comparisons: Sequence[ComparisonSummaryView]
    job: JobView | None
    next: str | None


@dataclass(frozen=True)
class ComparedModel:
    """An evaluation of a comparison, with its model."""

    id: str
    model: str
    role: str


@router.get("/comparisons")
def list_comparisons(
    request: Request, session: ReadSession, visitor: CurrentVisitor, job: JobId = "", after: After = None
) -> Response:
    """Show the comparisons, newest first, or that of a job, which may still be computed."""
    view = _list_view(job, after)
    state = view.load(session)
    parts = view.render(state, visitor)
    query = encode_query({"job": job, "after": after})
    return render_page(
        request, "comparisons/list.jinja", state=state, parts=parts, query=query, after=after, job=job
    )


@router.get("/comparisons/stream")
def stream_comparisons(
    request: Request, job: JobId = "", after: After = None, version: Version = ""
) -> Response:
    """Stream the rows that change."""
    return stream_view(request, _list_view(job, after), version)


@router.post("/comparisons")
def create_comparison(
    session: WriteSession,
    visitor: CurrentVisitor,
    evaluation: Annotated[list[str] | None, Form(max_length=20)] = None,
) -> Response:
    """Queue the comparison of the chosen evaluations, and go where its result will be."""
    assert visitor.caller is not None
    body = parse_form(ComparisonCreate, evaluations=evaluation or [])
    job = service.create_comparison(session, get_settings(), body, visitor.caller.key_id)
    return RedirectResponse(f"/comparisons?job={job.id}", 303)


@router.get("/comparisons/{comparison_id}")
def show_comparison(
    request: Request,
    comparison_id: ComparisonId,
    metric: Annotated[str, Query(max_length=1024)] = "",
    filter: RowFilter | None = None,
    against: Annotated[str, Query(max_length=64)] = "",
    after: Position = 0,
) -> Response:
    """Show a comparison: paired differences, gates of its job, and the rows that changed first."""
    with read_session() as session:
        comparison = comparison_view(service.get_comparison(session, comparison_id))
        gates = list_gates(session, comparison.job_id)
    first, *rest = comparison.evaluations
    chosen = against if against in rest else rest[0]
    query = RowQuery(metric, filter, against, after)
    are_stored = first.startswith(STORED) and chosen.startswith(STORED)
    others = _list_others(comparison)
    return render_page(
        request,
        "comparisons/page.jinja",
        comparison=comparison,
        names={model.role: model.model for model in comparison.result.models},
        difference_scales=scale_differences(comparison.result.differences),
        gates=gates,
        query=query,
        page=read_rows(first, replace(query, against=chosen)) if are_stored else None,
        filters=list(RowFilter),
        others=others,
        other=next(each for each in others if each.id == chosen),
    )


def _list_others(comparison: ComparisonView) -> list[ComparedModel]:
    """Return the evaluations and their models in the order of the result."""
    models = comparison.result.models
    return [
        # A result of another version may have fewer models.
        ComparedModel(evaluation_id, models[index].model, models[index].role)
        if index < len(models)
        else ComparedModel(evaluation_id, evaluation_id, "")
        for index, evaluation_id in enumerate(comparison.evaluations)
    ]


def _list_view(job_id: str, after: str | None) -> LiveView[ComparisonList]:
    def load(session: Session) -> ComparisonList:
        found, following = service.list_comparisons(session, PageQuery(after=after), job_id or None)
        job = None
        if job_id:
            job = jobs.view_job(session, get_settings(), jobs.get_job(session, job_id))
        views = [ComparisonSummaryView.model_validate(each) for each in found]
        return ComparisonList(views, job, following)

    def render(state: ComparisonList, visitor: Visitor) -> Parts:
        rows = {
            f"row-{each.id}": render_macro(visitor.language, PARTS, "row", each) for each in state.comparisons
        }
        parts = {"comparison-job": render_macro(visitor.language, PARTS, "job_state", state)}
        empty = render_macro(visitor.language, PARTS, "empty_row", state)
        return Parts(parts=parts, rows=rows, table="comparisons", empty=empty)

    return LiveView(load, render)
