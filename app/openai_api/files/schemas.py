"""The shapes of OpenAI's Files API."""

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from app.datasets.upload import FormUpload
from app.http.documents.multipart import multipart_form
from app.http.errors import field_error
from app.openai_api.errors import parameter_error
from app.openai_api.parameters import OpenAIBody
from app.tables import Dataset, File, FilePurpose

CreatePurpose = Literal["assistants", "batch", "evals", "fine-tune", "user_data", "vision"]
CREATE_PURPOSES: tuple[str, ...] = get_args(CreatePurpose)
MAX_LISTED_FAULTS = 10
DAY_SECONDS = 24 * 3600
# As OpenAI's: only the inputs of batches disappear by themselves.
DEFAULT_BATCH_SECONDS = 30 * DAY_SECONDS

FileId = Annotated[str, Field(max_length=64, description="Id of a file, `file-…`.")]


class ExpiresAfter(OpenAIBody):
    """When an object disappears by itself."""

    anchor: Literal["created_at"] = Field(description="The time from which the seconds count.")
    seconds: int = Field(ge=3600, le=DEFAULT_BATCH_SECONDS, description="Seconds after that time.")


class FileObject(BaseModel):
    """A file."""

    id: FileId
    object: Literal["file"] = Field(description="Always `file`.")
    bytes: int = Field(description="Size in bytes.")
    created_at: int = Field(description="Unix time of the upload.")
    expires_at: int | None = Field(description="Unix time of the deletion; null if there is none.")
    filename: str = Field(description="Name that the client gave it.")
    purpose: FilePurpose = Field(description="What it is for.")
    status: Literal["processed", "error"] = Field(
        description="Whether its rows can be used for training; other files are always `processed`."
    )
    status_details: str | None = Field(description="The first faults of its rows, with their lines.")
    dataset: str | None = Field(description="Id of the dataset with its rows; not in OpenAI's API.")


class FileDeleted(BaseModel):
    """The response to a deletion."""

    id: FileId
    object: Literal["file"] = Field(description="Always `file`.")
    deleted: bool = Field(description="Always true.")


FILE_FORM = multipart_form(
    ["file", "purpose"],
    {
        "file": {"type": "string", "format": "binary", "description": "The file."},
        "purpose": {
            "type": "string",
            "enum": list(CREATE_PURPOSES),
            "description": "What it is for; the rows of `fine-tune` are validated.",
        },
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2592000},
    },
    {"file": {"contentType": "application/jsonl"}},
)


def view_file(file: File, dataset: Dataset | None) -> FileObject:
    """Return a file in OpenAI's shape; the dataset is that of its rows."""
    faults = _describe_faults(dataset) if file.purpose is FilePurpose.fine_tune else None
    return FileObject(
        id=file.id,
        object="file",
        bytes=file.size_bytes,
        created_at=int(file.created_at.timestamp()),
        expires_at=int(file.expires_at.timestamp()) if file.expires_at else None,
        filename=file.filename,
        purpose=file.purpose,
        status="processed" if faults is None else "error",
        status_details=faults,
        dataset=file.dataset_id,
    )


def default_expiry(purpose: FilePurpose) -> int | None:
    """Return after how many seconds a file expires for which nothing else was asked."""
    return DEFAULT_BATCH_SECONDS if purpose is FilePurpose.batch else None


def read_purpose(upload: FormUpload) -> FilePurpose:
    """Return the form's `purpose`; raises UnprocessableContent for one that is missing or unknown."""
    purpose = upload.fields.get("purpose", "")
    if purpose not in CREATE_PURPOSES:
        raise field_error("purpose", f"{purpose!r} is not one of {', '.join(CREATE_PURPOSES)}.")
    return FilePurpose(purpose)


def read_expiry(upload: FormUpload, purpose: FilePurpose) -> int | None:
    """Return after how many seconds the file expires; raises UnprocessableContent if the form is invalid."""
    given = {
        name: upload.fields[field]
        for name in ("anchor", "seconds")
        if (field := f"expires_after[{name}]") in upload.fields
    }
    if not given:
        return default_expiry(purpose)
    seconds = given.get("seconds", "")
    values = {**given, "seconds": int(seconds)} if seconds.isascii() and seconds.isdigit() else given
    try:
        return TypeAdapter(ExpiresAfter).validate_python(values).seconds
    except ValidationError as error:
        errors = [{**found, "loc": ("body", "expires_after", *found["loc"])} for found in error.errors()]
        raise parameter_error(errors, {"expires_after": values}) from None


def refuse_unknown_fields(upload: FormUpload) -> None:
    """Raise UnprocessableContent for a field of the form that does not exist."""
    known = {"purpose", "expires_after[anchor]", "expires_after[seconds]"}
    for name in upload.fields:
        if name not in known:
            raise field_error(name, f"There is no such field. Known are: file, {', '.join(sorted(known))}.")


def _describe_faults(dataset: Dataset | None) -> str | None:
    if dataset is None or dataset.deleted_at is not None:
        return "Its rows were deleted."
    if dataset.trainable:
        return None
    faults = dataset.report.get("faults", [])[:MAX_LISTED_FAULTS]
    listed = "; ".join(_describe_fault(fault) for fault in faults)
    more = f"; {dataset.fault_count - len(faults)} more" if dataset.fault_count > len(faults) else ""
    return f"{listed}{more}" if listed else "The file has no rows."


def _describe_fault(fault: dict[str, Any]) -> str:
    line = f"line {fault['line']}: " if fault.get("line") else ""
    return f"{line}{fault['message']}"
