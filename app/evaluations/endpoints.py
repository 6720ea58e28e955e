"""Evaluations over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from app.downloads.response import download_response, download_responses
from app.evaluations import rows, service, stored_files
from app.evaluations.schemas import (
    EvaluationRowView,
    EvaluationSummaryView,
    EvaluationView,
    ReportFormat,
    RowFilter,
    RowsFormat,
    evaluation_summary_view,
)
from app.evaluations.service import MAX_FILTER_CHARACTERS, EvaluationFilters, evaluation_filters
from app.http.paging import DEFAULT_LIMIT, Limit, Page, Paging
from app.storage.database import ReadSession

router = APIRouter(prefix="/evaluations", tags=["evaluations"])

EvaluationId = Annotated[str, Path(description="Id of the evaluation, `evaluation_…`.")]
ReportChoice = Annotated[ReportFormat, Query(description="`html` with plots, or `markdown`.")]
RowsChoice = Annotated[RowsFormat, Query(description="JSON Lines or Parquet.")]


@router.get("")
def list_evaluations(
    session: ReadSession, paging: Paging, filters: Annotated[EvaluationFilters, Depends(evaluation_filters)]
) -> Page[EvaluationSummaryView]:
    """List evaluations, newest first: one for each model of an `evaluate` run."""
    evaluations, after = service.list_evaluations(session, paging, filters)
    return Page(items=[evaluation_summary_view(evaluation) for evaluation in evaluations], next=after)


@router.get("/{evaluation_id}")
def get_evaluation(evaluation_id: EvaluationId, session: ReadSession) -> EvaluationView:
    """Return an evaluation with its scores, and everything on which they depend."""
    return service.view_evaluation(session, service.get_evaluation(session, evaluation_id))


@router.get("/{evaluation_id}/rows")
def list_evaluation_rows(
    evaluation_id: EvaluationId,
    against: Annotated[
        str | None,
        Query(
            max_length=64,
            description="Id of the evaluation to compare with; by default the baseline of the same run. Rows "
            "of other runs are found by their prompt and reference.",
        ),
    ] = None,
    metric: Annotated[
        str | None,
        Query(max_length=MAX_FILTER_CHARACTERS, description="Metric to compare by; by default the main one."),
    ] = None,
    filter: Annotated[
        RowFilter | None,
        Query(
            description="Return only rows on which this model is better (`won`) or worse (`lost`) than the "
            "other one, or that it has `wrong`."
        ),
    ] = None,
    limit: Limit = DEFAULT_LIMIT,
    after: Annotated[
        int, Query(ge=0, lt=2**31, description="`next` of the previous page: a position in the list.")
    ] = 0,
) -> Page[EvaluationRowView]:
    """List the rows, those first whose value differs most from the other evaluation's.

    A page of large rows may be shorter than `limit`.
    """
    items, following = rows.list_rows(evaluation_id, against, metric, filter, after, limit)
    return Page(items=items, next=following)


@router.get(
    "/{evaluation_id}/report",
    responses=download_responses("text/html", "The report."),
    response_class=Response,
)
def get_evaluation_report(
    request: Request, evaluation_id: EvaluationId, format: ReportChoice = ReportFormat.html
) -> Response:
    """Return the report of the run: scores with intervals, differences, slices and changed rows."""
    evaluation = service.load_evaluation(evaluation_id)
    report = stored_files.find_report(evaluation.id, evaluation.artifact, evaluation.sha256, format)
    return download_response(request.headers, report)


@router.get(
    "/{evaluation_id}/download",
    responses=download_responses("application/vnd.apache.parquet", "The rows."),
    response_class=Response,
)
def download_evaluation(
    request: Request, evaluation_id: EvaluationId, format: RowsChoice = RowsFormat.parquet
) -> Response:
    """Download all rows of the run, with the responses and values of all of its models."""
    evaluation = service.load_evaluation(evaluation_id)
    download = stored_files.find_rows(evaluation.id, evaluation.artifact, evaluation.sha256, format)
    return download_response(request.headers, download)
