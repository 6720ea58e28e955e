"""Multipart uploads, written to disk as they arrive: memory use does not depend on the size of the file."""

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser, parse_options_header
from starlette.concurrency import run_in_threadpool

from app.datasets.schemas import MAX_NAME_LENGTH
from app.http.errors import HttpError, PayloadTooLarge, UnprocessableContent
from trainers.configs.base import PRINTABLE_PATTERN
from trainers.data.conversion.csv_table import CsvOptions, Delimiter, TextEncoding
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.verified_files import hash_file

# Allowance for the boundaries, headers and other fields of the form.
FORM_OVERHEAD_BYTES = 64 << 10
MAX_FIELD_BYTES = 4 << 10
MAX_PARTS = 16
TChoice = TypeVar("TChoice", bound=StrEnum)


class NotMultipart(HttpError):
    """The body is not a form with a file."""

    status = 415
    code = ErrorCode.not_multipart


@dataclass(frozen=True)
class UploadedFile:
    """A file of the form on disk, and the name that the client gave it."""

    path: Path
    name: str


@dataclass
class FormUpload:
    """The files of the form field `file`, and the form's other fields."""

    files: list[UploadedFile] = field(default_factory=list)
    fields: dict[str, str] = field(default_factory=dict)

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
    upload = FormUpload()
    parser = _make_parser(upload, options[b"boundary"], folder, max_parts, field_name)
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
        await run_in_threadpool(_feed, parser, chunk)
    await run_in_threadpool(_feed, parser, None)
    if not upload.files:
        raise UnprocessableContent(
            "The form contains no file.",
            hint=_send_hint(field_name),
            fields=[{"field": field_name, "message": "A file is required."}],
        )
    return upload


def _send_hint(field_name: str) -> str:
    return f"Send the file as the form field `{field_name}`: curl -F {field_name}=@…"


def upload_name(upload: FormUpload) -> str:
    """Return the form's `name`, or the stem of the file's; raises UnprocessableContent if it is invalid."""
    name = upload.fields.get("name", "").strip() or Path(upload.files[-1].name).stem or "upload"
    if len(name) > MAX_NAME_LENGTH or not re.match(PRINTABLE_PATTERN, name):
        message = (
            f"The name is invalid: it must have at most {MAX_NAME_LENGTH} characters, none of them a control "
            "character or one that reorders the text beside it (U+202A to U+202E, U+2066 to U+2069)."
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


def _make_parser(
    upload: FormUpload, boundary: bytes, folder: Path, max_parts: int, field_name: str
) -> FormParser:
    n_parts = 0

    def count_part() -> None:
        # The parser itself bounds the parts of URL-encoded forms only.
        nonlocal n_parts
        n_parts += 1
        if n_parts > max_parts:
            raise FormParserError(f"it has more than {max_parts} parts")

    def on_field(part: Field) -> None:
        count_part()
        name = (part.field_name or b"").decode("utf-8", "replace")
        upload.fields[name] = (part.value or b"").decode("utf-8", "replace")

    def on_file(part: File) -> None:
        part.flush_to_disk() if part.in_memory else part.file_object.flush()
        part.close()
        count_part()
        if part.field_name == field_name.encode():
            assert part.actual_file_name is not None
            name = (part.file_name or b"").decode("utf-8", "replace")
            upload.files.append(UploadedFile(Path(part.actual_file_name.decode()), name))

    config: dict[Any, Any] = {
        "UPLOAD_DIR": str(folder),
        "UPLOAD_DELETE_TMP": False,
        "MAX_MEMORY_FILE_SIZE": 1 << 20,
        "MAX_FIELD_SIZE": MAX_FIELD_BYTES,
    }
    return FormParser("multipart/form-data", on_field, on_file, boundary=boundary, config=config)


def _feed(parser: FormParser, chunk: bytes | None) -> None:
    """Pass a chunk to the parser; None ends the form."""
    try:
        if chunk is None:
            parser.finalize()
            parser.close()
        else:
            parser.write(chunk)
    except FormParserError as error:
        raise UnprocessableContent(
            f"The form is not valid multipart/form-data: {error}.", hint="Upload the file again."
        ) from error
