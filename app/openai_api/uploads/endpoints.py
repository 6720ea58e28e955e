"""OpenAI's Uploads API: a file in parts."""

import sys

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from app.datasets.upload import receive_upload, upload_folder
from app.http.errors import field_error
from app.idempotency.creation import Creation, Record, UploadCreation
from app.openai_api.files.endpoints import load_view
from app.openai_api.files.schemas import default_expiry
from app.openai_api.uploads.schemas import (
    PART_FORM,
    UploadComplete,
    UploadCreate,
    UploadId,
    UploadObject,
    UploadPartObject,
    view_part,
    view_upload,
)
from app.settings import get_settings
from app.storage.database import read_session
from app.tables import FilePurpose, Upload
from app.tables.base import utc_now
from app.uploads import service

router = APIRouter(prefix="/uploads", tags=["uploads"])


@router.post("")
def create_upload(body: UploadCreate, creation: Creation) -> UploadObject:
    """Begin an upload in parts, which expires after an hour."""
    purpose = FilePurpose(body.purpose)
    upload = Upload(
        filename=body.filename,
        purpose=purpose,
        size_bytes=body.bytes,
        file_expires_after_seconds=(
            body.expires_after.seconds if body.expires_after else default_expiry(purpose)
        ),
    )
    upload_id = creation.once(lambda record: service.create_upload(get_settings(), upload, record))
    with read_session() as session:
        return view_upload(service.get_upload(session, upload_id), None, utc_now())


@router.post("/{upload_id}/parts", openapi_extra=PART_FORM, max_body_size=sys.maxsize)
async def create_upload_part(
    request: Request, upload_id: UploadId, creation: UploadCreation
) -> UploadPartObject:
    """Send a part of at most 64 MiB; parts may be sent at the same time, and in any order."""
    with upload_folder(get_settings().data_dir / "uploads") as folder:
        form = await receive_upload(request, folder, service.MAX_PART_BYTES, field_name="data")
        for name in form.fields:
            raise field_error(name, "There is no such field. Known is: data.")

        def create(record: Record) -> str:
            return service.add_part(upload_id, form.files[-1].path, record).id

        part_id = await run_in_threadpool(lambda: creation(form.hash_content()).once(create))
    return await run_in_threadpool(_load_part, part_id)


@router.post("/{upload_id}/complete")
def complete_upload(upload_id: UploadId, body: UploadComplete) -> UploadObject:
    """Join the parts in the given order to a file; a second call returns the same file."""
    upload, file = service.complete_upload(get_settings(), upload_id, body.part_ids, body.md5)
    return view_upload(upload, load_view(file.id), utc_now())


@router.post("/{upload_id}/cancel")
def cancel_upload(upload_id: UploadId) -> UploadObject:
    """Cancel an upload; its parts are deleted."""
    return view_upload(service.cancel_upload(upload_id), None, utc_now())


def _load_part(part_id: str) -> UploadPartObject:
    with read_session() as session:
        return view_part(service.get_part(session, part_id))
