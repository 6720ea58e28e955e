"""Datasets over HTTP."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from app.datasets import service
from app.datasets.schemas import UPLOAD_FORM, DatasetRowView, DatasetSummaryView, DatasetView, PreviewCreate
from app.datasets.upload import dataset_name, receive_upload, upload_folder
from app.http.auth import CallerDependency
from app.http.paging import Page, Paging
from app.jobs import service as jobs
from app.jobs.schemas import JobView
from app.settings import get_settings
from app.storage.artifacts import read_chunks
from app.storage.database import ReadSession, WriteSession
from trainers.data.formats import RowFormat

router = APIRouter(prefix="/datasets", tags=["datasets"])

SAME_CONTENT: dict[int | str, dict[str, Any]] = {
    200: {
        "model": DatasetView,
        "description": "The dataset that this content became before, with its first name.",
    }
}


@router.post("", status_code=201, responses=SAME_CONTENT, openapi_extra=UPLOAD_FORM)
async def upload_dataset(request: Request, response: Response) -> DatasetView:
    """Upload a JSONL file, which is validated row by row."""
    settings = get_settings()
    with upload_folder(settings.data_dir / "uploads") as folder:
        upload = await receive_upload(request, folder, settings.max_upload_bytes)
        assert upload.path is not None
        dataset, before = await run_in_threadpool(service.store_file, upload.path, dataset_name(upload))
    response.status_code = 200 if before else 201
    return service.view(dataset)


@router.get("")
def list_datasets(
    session: ReadSession, paging: Paging, name: str | None = None, format: RowFormat | None = None
) -> Page[DatasetSummaryView]:
    """Datasets from new to old."""
    items, after = service.page(session, paging, name, format)
    return Page(items=list(items), next=after)


@router.get("/{dataset_id}")
def get_dataset(session: ReadSession, dataset_id: str) -> DatasetView:
    """One dataset with its validation report."""
    return service.view(service.get(session, dataset_id))


@router.get("/{dataset_id}/rows")
def list_rows(
    dataset_id: str,
    offset: Annotated[int, Query(ge=0, description="Readable rows to pass over.")] = 0,
    limit: Annotated[int, Query(ge=1, le=100)] = 10,
) -> list[DatasetRowView]:
    """Rows as they stand in the file and as conversations."""
    return service.rows(dataset_id, offset, limit)


@router.get("/{dataset_id}/content")
def download_dataset(dataset_id: str) -> StreamingResponse:
    """The file as it was uploaded."""
    return StreamingResponse(read_chunks(service.content(dataset_id)), media_type="application/jsonl")


@router.post("/{dataset_id}/previews", status_code=202)
def preview_dataset(
    session: WriteSession, caller: CallerDependency, dataset_id: str, body: PreviewCreate
) -> JobView:
    """Render rows with a model's template and mark the tokens that carry loss: read the run's `result`."""
    return jobs.show(session, get_settings(), service.preview(session, dataset_id, body, caller.key_id))
