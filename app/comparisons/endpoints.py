"""Comparisons over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from app.comparisons import service
from app.comparisons.schemas import (
    ComparisonCreate,
    ComparisonSummaryView,
    ComparisonView,
    comparison_view,
)
from app.downloads.response import download_response, download_responses
from app.evaluations import stored_files
from app.evaluations.endpoints import ReportChoice, RowsChoice
from app.evaluations.schemas import ReportFormat, RowsFormat
from app.http.auth import CallerDependency
from app.http.paging import Page, Paging
from app.jobs import service as jobs
from app.jobs.schemas import JobView
from app.settings import get_settings
from app.storage.database import ReadSession, WriteSession

router = APIRouter(prefix="/comparisons", tags=["evaluations"])

ComparisonId = Annotated[str, Path(description="Id of the comparison, `comparison_…`.")]


@router.post("", status_code=202)
def create_comparison(session: WriteSession, caller: CallerDependency, body: ComparisonCreate) -> JobView:
    """Queue a short run that compares stored evaluations row by row; its job's comparison is the result.

    GET /api/v1/comparisons?job=… returns the comparison when the job has succeeded.
    """
    job = service.create_comparison(session, get_settings(), body, caller.key_id)
    return jobs.view_job(session, get_settings(), job)


@router.get("")
def list_comparisons(
    session: ReadSession,
    paging: Paging,
    job: Annotated[
        str | None, Query(max_length=64, description="Return only comparisons of the job with this id.")
    ] = None,
) -> Page[ComparisonSummaryView]:
    """List comparisons, newest first."""
    comparisons, after = service.list_comparisons(session, paging, job)
    return Page(items=[ComparisonSummaryView.model_validate(each) for each in comparisons], next=after)


@router.get("/{comparison_id}")
def get_comparison(comparison_id: ComparisonId, session: ReadSession) -> ComparisonView:
    """Return a comparison with its result."""
    return comparison_view(service.get_comparison(session, comparison_id))


@router.get(
    "/{comparison_id}/report",
    responses=download_responses("text/html", "The report."),
    response_class=Response,
)
def get_comparison_report(
    request: Request, comparison_id: ComparisonId, format: ReportChoice = ReportFormat.html
) -> Response:
    """Return the report of a comparison."""
    comparison = service.load_comparison(comparison_id)
    report = stored_files.find_report(comparison.id, comparison.artifact, comparison.sha256, format)
    return download_response(request.headers, report)


@router.get(
    "/{comparison_id}/download",
    responses=download_responses("application/vnd.apache.parquet", "The rows."),
    response_class=Response,
)
def download_comparison(
    request: Request, comparison_id: ComparisonId, format: RowsChoice = RowsFormat.parquet
) -> Response:
    """Download the common rows, with the responses and values of all evaluations."""
    comparison = service.load_comparison(comparison_id)
    download = stored_files.find_rows(comparison.id, comparison.artifact, comparison.sha256, format)
    return download_response(request.headers, download)
