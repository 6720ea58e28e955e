"""Datasets over HTTP."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from app.datasets import previews, service
from app.datasets.reception import MAX_REQUEST_BYTES, receive_dataset
from app.datasets.schemas import (
    UPLOAD_FORM,
    DatasetRowView,
    DatasetSummaryView,
    DatasetView,
    PreviewCreate,
    summary_view,
)
from app.downloads.response import download_response, download_responses
from app.evaluations import leaderboard
from app.evaluations.schemas import LeaderboardView
from app.http.auth import CallerDependency
from app.http.paging import Page, Paging
from app.jobs import service as jobs
from app.jobs.schemas import JobView
from app.settings import get_settings
from app.storage.database import ReadSession, WriteSession
from trainers.data.formats import RowFormat

router = APIRouter(prefix="/datasets", tags=["datasets"])

DatasetId = Annotated[str, Path(description="Id of the dataset, `dataset_…`.")]
SAME_CONTENT: dict[int | str, dict[str, Any]] = {
    200: {
        "model": DatasetView,
        "description": "The dataset that already has this content, under the name of its first upload.",
    }
}


@router.post(
    "", status_code=201, responses=SAME_CONTENT, openapi_extra=UPLOAD_FORM, max_body_size=MAX_REQUEST_BYTES
)
async def upload_dataset(request: Request, response: Response) -> DatasetView:
    """Upload a file and validate every row of it; CSV, Parquet and JSON arrays become JSON Lines."""
    received = await receive_dataset(request, get_settings())
    response.status_code = 200 if received.exists else 201
    return await run_in_threadpool(service.load_view, received.id)


@router.get("")
def list_datasets(
    session: ReadSession,
    paging: Paging,
    name: Annotated[str | None, Query(description="Return only datasets with exactly this name.")] = None,
    format: Annotated[RowFormat | None, Query(description="Return only datasets of this format.")] = None,
    preflights: Annotated[
        bool,
        Query(description="Whether to return datasets that preflights have produced; one `name` finds all."),
    ] = True,
) -> Page[DatasetSummaryView]:
    """List datasets, newest first.

    The pages and the command line send `preflights=false`. The default is true, because programs that list
    datasets to copy, count or delete them would otherwise miss some without a sign.
    """
    datasets, after = service.list_datasets(session, paging, name, format, with_preflights=preflights)
    return Page(items=[summary_view(dataset) for dataset in datasets], next=after)


@router.get("/{dataset_id}")
def get_dataset(session: ReadSession, dataset_id: DatasetId) -> DatasetView:
    """Return a dataset with its validation report, and the models that were trained on it."""
    return service.view_dataset(session, service.get_dataset(session, dataset_id))


@router.delete("/{dataset_id}", status_code=204)
def delete_dataset(dataset_id: DatasetId, session: WriteSession) -> None:
    """Delete a dataset that no unfinished job reads; models trained on it and finished jobs keep its id.

    Of several datasets with its name, jobs then use the newest that remains. The file disappears with the
    next collection. Deleting it again returns 404; uploading the same file restores it under its old id.
    """
    service.delete_dataset(session, dataset_id)


@router.get("/{dataset_id}/rows")
def list_rows(
    dataset_id: DatasetId,
    after: Annotated[int, Query(ge=0, description="Number of readable rows to skip.")] = 0,
    limit: Annotated[int, Query(ge=1, le=100, description="Rows on the page.")] = 10,
) -> Page[DatasetRowView]:
    """List the rows of the file, each as it is stored and as a conversation."""
    rows, following = service.list_rows(dataset_id, after, limit)
    return Page(items=rows, next=following)


@router.get(
    "/{dataset_id}/content",
    responses=download_responses(service.JSONL, "The file."),
    response_class=Response,
)
def download_dataset(request: Request, dataset_id: DatasetId) -> Response:
    """Download the file as it was uploaded; `Range` continues a download that was interrupted."""
    return download_response(request.headers, service.find_content(dataset_id))


@router.post("/{dataset_id}/previews", status_code=202)
def create_preview(
    session: WriteSession, caller: CallerDependency, dataset_id: DatasetId, body: PreviewCreate
) -> JobView:
    """Queue a run that renders rows with a model's template; its `result` marks the loss tokens."""
    job = previews.create_preview(session, get_settings(), dataset_id, body, caller.key_id)
    return jobs.view_job(session, get_settings(), job)


@router.get("/{dataset_id}/leaderboard")
def get_leaderboard(
    dataset_id: DatasetId,
    session: ReadSession,
    metric: Annotated[str, Query(max_length=1024, description="Name of a metric, such as `exact_match`.")],
) -> LeaderboardView:
    """Rank the models that were evaluated on a dataset, each by its best evaluation.

    Scores with other signatures, or of other rows, are in a ranking of their own.
    """
    return leaderboard.view_leaderboard(session, dataset_id, metric)
