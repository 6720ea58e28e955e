"""Uploads in parts, each of which becomes a file when it is completed."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import BigInteger
from sqlmodel import Field, SQLModel

from app.tables.base import enum_type, new_id, time_field
from app.tables.openai_api.file import FilePurpose


class UploadStatus(StrEnum):
    """The state of an upload; one that is pending at its expiry has expired."""

    pending = "pending"
    completed = "completed"
    cancelled = "cancelled"


class Upload(SQLModel, table=True):
    """A file that a client sends in parts."""

    __tablename__ = "upload"

    id: str = Field(default_factory=lambda: new_id("upload"), primary_key=True)
    filename: str
    purpose: FilePurpose = Field(sa_type=enum_type(FilePurpose))
    size_bytes: int = Field(
        sa_type=BigInteger, description="Size of the file, as the client has announced it."
    )
    file_expires_after_seconds: int | None = None
    status: UploadStatus = Field(default=UploadStatus.pending, sa_type=enum_type(UploadStatus))
    file_id: str | None = Field(default=None, description="The file, once it is completed.")
    created_at: datetime = time_field(default_now=True)
    expires_at: datetime = time_field(default_now=True, description="From then on no part is accepted.")


class UploadPart(SQLModel, table=True):
    """A part of an upload; the order is given when it is completed."""

    __tablename__ = "upload_part"

    id: str = Field(default_factory=lambda: new_id("part"), primary_key=True)
    upload_id: str = Field(foreign_key="upload.id", index=True)
    artifact: str = Field(unique=True, description="Key of the bytes in the artifact store.")
    sha256: str
    size_bytes: int = Field(sa_type=BigInteger)
    created_at: datetime = time_field(default_now=True)
