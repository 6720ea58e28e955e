"""A multipart upload written to disk as it arrives: memory stays constant whatever the file's size."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser, parse_options_header
from starlette.concurrency import run_in_threadpool

from app.http.errors import HttpError, PayloadTooLarge, UnprocessableContent
from trainers.configs.base import PRINTABLE_PATTERN
from trainers.runtime.error_codes import ErrorCode

FORM_OVERHEAD_BYTES = 64 << 10
MAX_FIELD_BYTES = 4 << 10
LONGEST_NAME = 200


class NotMultipart(HttpError):
    """The body is not a form with a file."""

    status_code = 415
    code = ErrorCode.not_multipart


@dataclass
class DatasetUpload:
    """The form's file on disk, and its other fields."""

    path: Path | None = None
    filename: str = ""
    fields: dict[str, str] = field(default_factory=dict)


@contextmanager
def upload_folder(folder: Path) -> Iterator[Path]:
    """A folder for one upload, gone at the end, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="upload-") as own:
        yield Path(own)


async def receive_upload(request: Request, folder: Path, max_bytes: int) -> DatasetUpload:
    """Read the request's form into `folder`.

    Raises NotMultipart, TooLarge, and Invalid when the form is torn or holds no file.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or b"boundary" not in options:
        raise NotMultipart(
            "The body is not multipart/form-data.",
            hint="Send the file as the form field `file`: curl -F file=@…",
        )
    upload = DatasetUpload()
    parser = _parser(upload, options[b"boundary"], folder)
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > max_bytes + FORM_OVERHEAD_BYTES:
            raise PayloadTooLarge(
                f"The upload is larger than {max_bytes} bytes.",
                hint="Split it, or raise TUNESMITH_MAX_UPLOAD_BYTES.",
            )
        await run_in_threadpool(_write, parser, chunk)
    await run_in_threadpool(_write, parser, None)
    if upload.path is None:
        raise UnprocessableContent(
            "The form holds no file.",
            hint="Send the file as the form field `file`: curl -F file=@…",
            fields=[{"field": "file", "message": "A file is required."}],
        )
    return upload


def dataset_name(upload: DatasetUpload) -> str:
    """The form's `name`, else the file's; raises Invalid for one that no list could show."""
    name = upload.fields.get("name", "").strip() or Path(upload.filename).stem or "dataset"
    if len(name) > LONGEST_NAME or not re.match(PRINTABLE_PATTERN, name):
        message = f"The name must have at most {LONGEST_NAME} characters and no control characters."
        raise UnprocessableContent(
            message,
            hint="Send another as the form field `name`.",
            fields=[{"field": "name", "message": message}],
        )
    return name


def _parser(upload: DatasetUpload, boundary: bytes, folder: Path) -> FormParser:
    def on_field(part: Field) -> None:
        upload.fields[(part.field_name or b"").decode("utf-8", "replace")] = (part.value or b"").decode(
            "utf-8", "replace"
        )

    def on_file(part: File) -> None:
        part.flush_to_disk() if part.in_memory else part.file_object.flush()
        part.close()
        if part.field_name == b"file":
            assert part.actual_file_name is not None
            upload.path = Path(part.actual_file_name.decode())
            upload.filename = (part.file_name or b"").decode("utf-8", "replace")

    config: dict[Any, Any] = {
        "UPLOAD_DIR": str(folder),
        "UPLOAD_DELETE_TMP": False,
        "MAX_MEMORY_FILE_SIZE": 1 << 20,
        "MAX_FIELDS": 16,
        "MAX_FIELD_SIZE": MAX_FIELD_BYTES,
    }
    return FormParser("multipart/form-data", on_field, on_file, boundary=boundary, config=config)


def _write(parser: FormParser, chunk: bytes | None) -> None:
    """Feed the parser; None ends the form."""
    try:
        if chunk is None:
            parser.finalize()
            parser.close()
        else:
            parser.write(chunk)
    except FormParserError as error:
        raise UnprocessableContent(
            f"The form cannot be read: {error}.", hint="Upload the file again."
        ) from error
