"""What the dataset endpoints take and give."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from trainers.configs import Config, Queue
from trainers.configs.base import NonEmpty
from trainers.data.formats import RowFormat
from trainers.data.validate import ValidationReport

UPLOAD_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "A JSONL file."},
                        "name": {
                            "type": "string",
                            "description": "How jobs may refer to it; of one name they take the newest. "
                            "By default the file's name.",
                            # Swagger UI would send any other example as it stands, and so hide the data set
                            # of that name.
                            "example": "",
                        },
                    },
                }
            }
        },
    }
}


class DatasetSummaryView(BaseModel):
    """A dataset in a list."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    name: str
    sha256: str
    size_bytes: int
    format: RowFormat | None
    row_count: int
    fault_count: int
    trainable: bool = Field(description="Whether jobs may use it: it has rows and no fault.")
    created_at: datetime


class DatasetView(DatasetSummaryView):
    """A dataset with its validation report."""

    report: ValidationReport


class DatasetRowView(BaseModel):
    """A row as it stands in the file, and as a conversation."""

    line: int
    row: dict[str, Any]
    messages: list[dict[str, Any]] | None = Field(description="Null for a row that has a fault.")


class PreviewCreate(Config):
    """Rows to render with a model's chat template; a worker does it, since it needs the tokenizer."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "starter", "rows": 3}]})

    model: NonEmpty = Field(description="Model whose tokenizer and template are used.")
    rows: int = Field(5, ge=1, le=100, description="Rows from the start of the file.")
    max_length: int = Field(1024, ge=8, description="Tokens per row, as the training stage would cut them.")
    queue: Queue | None = None
