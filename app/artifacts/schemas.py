"""Requests and responses of the endpoints of artifacts."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.config import JsonDict

from app.artifacts.keys import MAX_KEY_LENGTH
from trainers.configs.base import Config

MAX_FILES = 20_000
MAX_SIZE_BYTES = 2**53

Sha256 = Annotated[
    str,
    StringConstraints(pattern="^[0-9a-f]{64}$"),
    Field(description="SHA-256 of the bytes, in hexadecimal."),
]
SizeBytes = Annotated[int, Field(ge=0, le=MAX_SIZE_BYTES, description="Size of the file in bytes.")]
KeyText = Annotated[
    str,
    StringConstraints(min_length=1, max_length=MAX_KEY_LENGTH),
    Field(description="Key in the store, such as `models/model_…`."),
]
EXAMPLE_SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
EXAMPLE_FOLDER: JsonDict = {
    "key": "models/model_01j9zq0d3v",
    "files": [{"path": "adapter_model.safetensors", "size_bytes": 4, "sha256": EXAMPLE_SHA256}],
}
EXAMPLE_FILE: JsonDict = {"key": "runs/run_01j9zq0d3v/1/log.txt", "size_bytes": 4, "sha256": EXAMPLE_SHA256}


class UploadProgress(BaseModel):
    """What has arrived of an upload, which is named by the hash of its whole content."""

    sha256: Sha256
    received_bytes: int = Field(description="Bytes that have arrived: the offset of the next ones.")
    is_complete: bool = Field(description="Whether all bytes have arrived and their hash is right.")
    max_chunk_bytes: int = Field(description="Maximum size of the body of one request.")


class FileCreate(Config):
    """A file to publish, whose bytes were uploaded before."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_FILE]})

    key: KeyText
    sha256: Sha256
    size_bytes: SizeBytes


class FolderMember(Config):
    """A file of a folder."""

    path: str = Field(min_length=1, max_length=MAX_KEY_LENGTH, description="Path within the folder.")
    sha256: Sha256
    size_bytes: SizeBytes


class FolderCreate(Config):
    """A folder to publish, whose files were uploaded before."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_FOLDER]})

    key: KeyText
    files: list[FolderMember] = Field(
        max_length=MAX_FILES, description="Its files; each path occurs once, and none is below another."
    )


class ArtifactView(BaseModel):
    """A published artifact."""

    key: KeyText
    sha256: str = Field(description="SHA-256 of the file, or of the manifest of a folder.")
    size_bytes: int = Field(description="Size of its files in bytes.")
