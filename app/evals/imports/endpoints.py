"""Imports of evals over HTTP."""

import sys

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from app.datasets.upload import receive_upload, upload_folder
from app.evals.imports import service
from app.evals.imports.files import ExportFile
from app.evals.imports.schemas import IMPORT_FORM, EvalImportView
from app.settings import get_settings

MAX_FILES = 200
MAX_IMPORT_BYTES = 1 << 30

router = APIRouter(prefix="/evals/imports", tags=["evals"])


# `receive_upload` checks the size.
@router.post("", status_code=201, openapi_extra=IMPORT_FORM, max_body_size=sys.maxsize)
async def import_evals(request: Request) -> EvalImportView:
    """Import evals, runs and output items that were exported from OpenAI; what exists already is not changed.

    The files have the API's own objects: one object a line, arrays, or pages of lists. Files whose lines are
    `{"item": …}` become files for evals. A malformed object is refused with file, line and field, and nothing
    is stored. All together have at most 1 GiB.
    """
    settings = get_settings()
    with upload_folder(settings.data_dir / "uploads") as folder:
        max_bytes = min(settings.max_upload_bytes, MAX_IMPORT_BYTES)
        upload = await receive_upload(request, folder, max_bytes, MAX_FILES)
        files = [ExportFile(file.path, file.name or "file") for file in upload.files]
        return await run_in_threadpool(service.import_files, settings, files)
