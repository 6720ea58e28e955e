"""Files that clients of the OpenAI API upload or receive, each with a purpose."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import BigInteger, Index
from sqlmodel import Field, SQLModel

from app.tables.base import enum_type, new_id, time_field


class FilePurpose(StrEnum):
    """What a file is for, in OpenAI's terms."""

    assistants = "assistants"
    batch = "batch"
    batch_output = "batch_output"
    evals = "evals"
    fine_tune = "fine-tune"
    fine_tune_results = "fine-tune-results"
    user_data = "user_data"
    vision = "vision"


class File(SQLModel, table=True):
    """A file of bytes, or the name of a dataset."""

    __tablename__ = "file"
    # A list of files is by purpose and age.
    __table_args__ = (Index("ix_file_purpose_id", "purpose", "id"),)

    id: str = Field(default_factory=lambda: new_id("file", "-"), primary_key=True)
    filename: str
    purpose: FilePurpose = Field(sa_type=enum_type(FilePurpose))
    size_bytes: int = Field(sa_type=BigInteger)
    dataset_id: str | None = Field(
        default=None,
        foreign_key="dataset.id",
        index=True,
        description="The dataset with the rows of the file.",
    )
    owns_dataset: bool = Field(
        default=False,
        description="Whether the dataset came from such files only, and ends with the last of them.",
    )
    artifact: str | None = Field(
        default=None,
        unique=True,
        description="Key of the content in the artifact store, if it is no dataset.",
    )
    sha256: str | None = Field(default=None, description="Hash of the artifact.")
    created_at: datetime = time_field(default_now=True)
    expires_at: datetime | None = time_field(description="From then on the file is deleted.")
