"""OpenAI's Files API: a file for training is a dataset, whose faults are in its status."""

import sys
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from app.datasets.upload import receive_upload, upload_folder
from app.downloads.response import download_response, download_responses
from app.files import service
from app.http.paging import CursorQuery
from app.idempotency.creation import Record, UploadCreation
from app.openai_api.files.schemas import (
    FILE_FORM,
    FileDeleted,
    FileId,
    FileObject,
    read_expiry,
    read_purpose,
    refuse_unknown_fields,
    view_file,
)
from app.openai_api.paging import After, ListPage, Order, list_page
from app.settings import get_settings
from app.storage.database import ReadSession, read_session
from app.tables import FilePurpose

MAX_LIMIT = 10_000

router = APIRouter(prefix="/files", tags=["files"])


# The size of an upload has a setting, which `receive_upload` checks.
@router.post("", openapi_extra=FILE_FORM, max_body_size=sys.maxsize)
async def create_file(request: Request, creation: UploadCreation) -> FileObject:
    """Upload a file; the rows of one with the purpose `fine-tune` are validated at once."""
    settings = get_settings()
    with upload_folder(settings.data_dir / "uploads") as folder:
        upload = await receive_upload(request, folder, settings.max_upload_bytes)
        refuse_unknown_fields(upload)
        purpose = read_purpose(upload)
        expires_after_seconds = read_expiry(upload, purpose)

        def create(record: Record) -> str:
            file, max_bytes = upload.files[-1], settings.max_upload_bytes
            return service.create_file(file, purpose, expires_after_seconds, max_bytes, record).id

        file_id = await run_in_threadpool(lambda: creation(upload.hash_content()).once(create))
    return await run_in_threadpool(load_view, file_id)


@router.get("")
def list_files(
    session: ReadSession,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Maximum number of files.")] = MAX_LIMIT,
    after: After = None,
    order: Order = "desc",
    purpose: Annotated[FilePurpose | None, Query(description="Return only files for this.")] = None,
) -> ListPage[FileObject]:
    """List the files."""
    files, has_more = service.list_files(session, CursorQuery(limit, after, order == "desc"), purpose)
    datasets = service.list_datasets(session, files)
    return list_page([view_file(file, datasets.get(file.dataset_id)) for file in files], has_more)


@router.get("/{file_id}")
def get_file(session: ReadSession, file_id: FileId) -> FileObject:
    """Return a file."""
    file = service.get_file(session, file_id)
    return view_file(file, service.get_dataset(session, file))


@router.delete("/{file_id}")
def delete_file(file_id: FileId) -> FileDeleted:
    """Delete a file that no unfinished job reads."""
    service.delete_file(file_id)
    return FileDeleted(id=file_id, object="file", deleted=True)


@router.get(
    "/{file_id}/content",
    responses=download_responses(service.BYTES, "The file."),
    response_class=Response,
)
def get_file_content(request: Request, file_id: FileId) -> Response:
    """Download a file."""
    return download_response(request.headers, service.find_content(file_id))


def load_view(file_id: str) -> FileObject:
    """Return a file, read in a session of its own."""
    with read_session() as session:
        file = service.get_file(session, file_id)
        return view_file(file, service.get_dataset(session, file))
