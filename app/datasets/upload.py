"""Multipart uploads, written to disk as they arrive: memory use does not depend on the size of the file."""

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.concurrency import run_in_threadpool

from app.datasets.form import FormReader, UploadedFile
from app.datasets.schemas import MAX_NAME_LENGTH
from app.http.errors import HttpError, PayloadTooLarge, UnprocessableContent
from trainers.configs.base import PRINTABLE_PATTERN, UNPRINTABLE_TEXT
from trainers.data.conversion.csv_table import CsvOptions, Delimiter, TextEncoding
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.verified_files import hash_file

# Allowance for the boundaries, headers and other fields of the form.
FORM_OVERHEAD_BYTES = 64 << 10
MAX_PARTS = 16
TChoice = TypeVar("TChoice", bound=StrEnum)


class NotMultipart(HttpError):
    """The body is not a form with a file."""

    status = 415
    code = ErrorCode.not_multipart


@dataclass
class FormUpload:
    """The files of the form field `file`, and the form's other fields."""

    files: list[UploadedFile]
    fields: dict[str, str]

    def hash_content(self) -> str:
        """Return the SHA-256 of what the form contains, in which its boundary has no part."""
        files = [(file.name, hash_file(file.path)) for file in self.files]
        return hashlib.sha256(json.dumps([files, sorted(self.fields.items())]).encode()).hexdigest()


@contextmanager
def upload_folder(parent: Path) -> Iterator[Path]:
    """Create a folder for one upload, and remove it afterwards."""
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix="upload-") as folder:
        yield Path(folder)


async def receive_upload(
    request: Request, folder: Path, max_bytes: int, max_parts: int = MAX_PARTS, field_name: str = "file"
) -> FormUpload:
    """Read the request's form, whose files are in the field `field_name`, into `folder`.

    Raises NotMultipart, PayloadTooLarge, and UnprocessableContent if the form is incomplete or has no file.
    """
    content_type, options = parse_options_header(request.headers.get("content-type", ""))
    if content_type != b"multipart/form-data" or b"boundary" not in options:
        raise NotMultipart("The body is not multipart/form-data.", hint=_send_hint(field_name))
    with closing(FormReader(options[b"boundary"], folder, max_parts)) as reader:
        await _read_form(request, reader, max_bytes, field_name)
    files = [file for name, file in reader.files if name == field_name]
    if not files:
        raise UnprocessableContent(
            "The form contains no file.",
            hint=_send_hint(field_name),
            fields=[{"field": field_name, "message": "A file is required."}],
        )
    return FormUpload(files, reader.fields)


async def _read_form(request: Request, reader: FormReader, max_bytes: int, field_name: str) -> None:
    received_bytes = 0
    async for chunk in request.stream():
        received_bytes += len(chunk)
        if received_bytes > max_bytes + FORM_OVERHEAD_BYTES:
            raise PayloadTooLarge(
                f"{field_name}: The upload is larger than {max_bytes} bytes.",
                # Only the size of a whole file has a setting.
                hint="Split the file, or raise TUNESMITH_MAX_UPLOAD_BYTES."
                if field_name == "file"
                else "Send smaller parts.",
                fields=[{"field": field_name, "message": "It is too large."}],
            )
        await run_in_threadpool(_feed, reader, chunk)
    await run_in_threadpool(_feed, reader, None)


def _send_hint(field_name: str) -> str:
    return f"Send the file as the form field `{field_name}`: curl -F {field_name}=@…"


def upload_name(upload: FormUpload) -> str:
    """Return the form's `name`, or the stem of the file's; raises UnprocessableContent if it is invalid."""
    name = upload.fields.get("name", "").strip() or Path(upload.files[-1].name).stem or "upload"
    if len(name) > MAX_NAME_LENGTH or not re.match(PRINTABLE_PATTERN, name):
        message = (
            f"The name is invalid: it must have at most {MAX_NAME_LENGTH} characters, and must not contain "
            f"{UNPRINTABLE_TEXT}."
        )
        raise UnprocessableContent(
            message,
            hint="Send another name as the form field `name`.",
            fields=[{"field": "name", "message": message}],
        )
    return name


def csv_options(upload: FormUpload) -> CsvOptions:
    """Return the form's `delimiter` and `encoding`; raises UnprocessableContent if one is unknown."""
    return CsvOptions(
        _read_choice(upload, "delimiter", Delimiter), _read_choice(upload, "encoding", TextEncoding)
    )


def _read_choice(upload: FormUpload, name: str, choices: type[TChoice]) -> TChoice | None:
    value = upload.fields.get(name, "").strip()
    if not value:
        return None
    try:
        return choices(value)
    except ValueError:
        message = f"The {name} is unknown; it must be one of: {', '.join(choices)}."
        fields = [{"field": name, "message": message}]
        hint = "Omit it: UTF-8 and the usual delimiters are detected."
        raise UnprocessableContent(message, hint=hint, fields=fields) from None


def _feed(reader: FormReader, chunk: bytes | None) -> None:
    """Pass a chunk to the reader; None ends the form."""
    try:
        reader.finish() if chunk is None else reader.feed(chunk)
    except FormParserError as error:
        raise UnprocessableContent(
            f"The form is not valid multipart/form-data: {error}.", hint="Upload the file again."
        ) from error
