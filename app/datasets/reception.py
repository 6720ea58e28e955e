"""Reception of an upload: the form is read to disk, and its file is converted, validated and stored."""

import sys
from collections.abc import Callable
from typing import NamedTuple

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from app.datasets import service
from app.datasets.upload import FormUpload, csv_options, receive_upload, upload_folder, upload_name
from app.settings import Settings

# The size of an upload has a setting, which `receive_upload` checks.
MAX_REQUEST_BYTES = sys.maxsize


class ReceivedDataset(NamedTuple):
    """The dataset of an upload, and whether its content was stored before."""

    id: str
    exists: bool


async def receive_dataset(
    request: Request, settings: Settings, check: Callable[[FormUpload], None] | None = None
) -> ReceivedDataset:
    """Store the file of a form as a dataset; raises the errors of `receive_upload` and of `check`.

    `check` gets the form before anything is stored.
    """
    with upload_folder(settings.data_dir / "uploads") as folder:
        upload = await receive_upload(request, folder, settings.max_upload_bytes)
        if check is not None:
            check(upload)
        file, name, options = upload.files[-1], upload_name(upload), csv_options(upload)
        dataset, exists = await run_in_threadpool(
            service.create_from_upload, file, name, options, settings.max_upload_bytes
        )
    if exists:
        await run_in_threadpool(service.keep_without_files, dataset.id)
    return ReceivedDataset(dataset.id, exists)
