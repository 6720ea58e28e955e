"""The shapes of OpenAI's Uploads API."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from app.files.service import MAX_FILENAME
from app.http.documents.multipart import multipart_form
from app.openai_api.files.schemas import CreatePurpose, ExpiresAfter, FileObject
from app.openai_api.parameters import OpenAIBody
from app.tables import FilePurpose, Upload, UploadPart
from app.uploads.service import MAX_PARTS, is_expired
from trainers.configs.base import PRINTABLE_PATTERN

UploadId = Annotated[str, Field(max_length=64, description="Id of an upload, `upload_…`.")]
PartId = Annotated[str, Field(max_length=64, description="Id of a part, `part_…`.")]


class UploadCreate(OpenAIBody):
    """A file to send in parts."""

    bytes: int = Field(ge=1, description="Size of the whole file.")
    filename: str = Field(
        min_length=1, max_length=MAX_FILENAME, pattern=PRINTABLE_PATTERN, description="Name of the file."
    )
    mime_type: str = Field(min_length=1, max_length=255, description="Type of the content; it is not kept.")
    purpose: CreatePurpose = Field(description="What the file is for.")
    expires_after: ExpiresAfter | None = Field(None, description="When the file is deleted.")


class UploadComplete(OpenAIBody):
    """The order of the parts."""

    part_ids: list[PartId] = Field(min_length=1, max_length=MAX_PARTS, description="All parts, in order.")
    md5: str | None = Field(
        None, pattern=r"^[0-9a-fA-F]{32}$", description="MD5 of the whole file, to detect errors of transfer."
    )


class UploadObject(BaseModel):
    """An upload."""

    id: UploadId
    object: Literal["upload"] = Field(description="Always `upload`.")
    bytes: int = Field(description="Announced size.")
    created_at: int = Field(description="Unix time of the creation.")
    expires_at: int = Field(description="Unix time after which no part is accepted.")
    filename: str = Field(description="Name of the file.")
    purpose: FilePurpose = Field(description="What the file is for.")
    status: Literal["pending", "completed", "cancelled", "expired"] = Field(description="State.")
    file: FileObject | None = Field(description="The file, once the upload is completed.")


class UploadPartObject(BaseModel):
    """A part of an upload."""

    id: PartId
    object: Literal["upload.part"] = Field(description="Always `upload.part`.")
    created_at: int = Field(description="Unix time of the creation.")
    upload_id: UploadId


PART_FORM = multipart_form(
    ["data"], {"data": {"type": "string", "format": "binary", "description": "At most 64 MiB."}}
)


def view_upload(upload: Upload, file: FileObject | None, now: datetime) -> UploadObject:
    """Return an upload in OpenAI's shape."""
    return UploadObject(
        id=upload.id,
        object="upload",
        bytes=upload.size_bytes,
        created_at=int(upload.created_at.timestamp()),
        expires_at=int(upload.expires_at.timestamp()),
        filename=upload.filename,
        purpose=upload.purpose,
        status="expired" if is_expired(upload, now) else upload.status.value,
        file=file,
    )


def view_part(part: UploadPart) -> UploadPartObject:
    """Return a part in OpenAI's shape."""
    return UploadPartObject(
        id=part.id,
        object="upload.part",
        created_at=int(part.created_at.timestamp()),
        upload_id=part.upload_id,
    )
