"""Request and response schemas of the dataset endpoints."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from app.http.documents.multipart import multipart_form
from app.storage.opening import get_store
from app.tables import Dataset
from trainers.configs import Config, Queue
from trainers.configs.base import PRINTABLE_PATTERN, NonEmpty
from trainers.configs.training import TemplateField
from trainers.data.conversion.csv_table import Delimiter, TextEncoding
from trainers.data.formats import RowFormat
from trainers.data.validate import ValidationReport

MAX_NAME_LENGTH = 200
UPLOAD_FILE = (
    "JSON Lines, a JSON array, a Parquet file, or a CSV file: its name ends in `.csv` or `.tsv`, or "
    "`delimiter` or `encoding` is sent."
)
UPLOAD_FORM = multipart_form(
    ["file"],
    {
        "file": {"type": "string", "format": "binary", "description": UPLOAD_FILE},
        "name": {
            "type": "string",
            "description": "Name that jobs may use, by default that of the file. Of several "
            "datasets with one name, jobs use the newest.",
            "maxLength": MAX_NAME_LENGTH,
            "pattern": PRINTABLE_PATTERN,
            # Swagger UI sends an example unchanged, and any other name would hide the dataset
            # that has it.
            "example": "",
        },
        "delimiter": {
            "type": "string",
            "description": "Delimiter of a CSV file; by default it is detected.",
            "enum": ["", *Delimiter],
            "example": "",
        },
        "encoding": {
            "type": "string",
            "description": "Encoding of a CSV file; by default UTF-8, or UTF-16 with a byte order mark.",
            "enum": ["", *TextEncoding],
            "example": "",
        },
    },
)


class DatasetSummaryView(BaseModel):
    """A dataset in a list."""

    model_config = ConfigDict(from_attributes=True)

    id: str = Field(description="Id of the dataset, `dataset_…`.")
    name: str = Field(description="Name that jobs may use instead of the id.")
    sha256: str = Field(description="Hash of the file.")
    size_bytes: int = Field(description="Size of the file.")
    format: RowFormat | None = Field(description="Format of the rows; null if none is recognized.")
    row_count: int = Field(description="Number of lines that are not blank.")
    fault_count: int = Field(description="Number of faults that validation found.")
    trainable: bool = Field(description="Whether jobs can use it: it has rows and no fault.")
    created_at: datetime = Field(description="When it was uploaded or produced.")
    path: str | None = Field(
        None,
        description="Path of the file on the host of the API; null if the artifacts are in a remote store.",
    )


class DatasetView(DatasetSummaryView):
    """A dataset with its validation report."""

    report: ValidationReport = Field(description="The findings of the validation.")
    models: list[str] = Field(
        description="Ids of the newest models trained on it, at most 100; GET /api/v1/models lists all by "
        "`dataset_id`."
    )
    jobs: list[str] = Field(
        description="Ids of unfinished jobs that use it and prevent its deletion, at most 100."
    )


class DatasetRowView(BaseModel):
    """A row as it is stored and as a conversation."""

    line: int = Field(description="Number of its line in the file, from 1.")
    row: dict[str, Any] = Field(description="The row as it is stored.")
    messages: list[dict[str, Any]] | None = Field(
        description="The row as a conversation; null for a row that has a fault."
    )


class PreviewCreate(Config):
    """Rows to render with a model's chat template. A worker renders them, because that needs a tokenizer."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "starter", "rows": 3}]})

    model: NonEmpty = Field(description="The model whose tokenizer and chat template are used.")
    template: TemplateField = None
    rows: int = Field(5, ge=1, le=100, description="Rows to render, from the start of the file.")
    max_length: int = Field(1024, ge=8, description="Tokens per row after which the row is truncated.")
    queue: Queue | None = Field(None, description="Hardware to run on; by default that of the service.")


def summary_view(dataset: Dataset) -> DatasetSummaryView:
    """Build the view of a dataset in a list."""
    path = get_store().local_path(dataset.artifact)
    view = DatasetSummaryView.model_validate(dataset)
    return view.model_copy(update={"path": str(path) if path else None})
