"""What the model endpoints give."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from app.tables import ModelKind, RunStatus


class ModelView(BaseModel):
    """Weights that can be served."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    name: str
    kind: ModelKind
    base: str = Field(description="Hub id or folder that training began from.")
    parent_id: str | None
    dataset_id: str | None
    run_id: str | None
    sha256: str = Field(description="Hash of the manifest, which holds the hash of every file.")
    size_bytes: int
    template_sha256: str | None = Field(description="Hash of the chat template.")
    created_at: datetime


class LineageRunView(BaseModel):
    """The run that made a model."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    job_id: str
    name: str
    status: RunStatus


class LineageDatasetView(BaseModel):
    """The dataset that a model was trained on."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    name: str
    sha256: str
    row_count: int


class ModelLineageView(ModelView):
    """A model and where it came from."""

    run: LineageRunView | None
    dataset: LineageDatasetView | None
    parent: ModelView | None = Field(description="The registry model that training began from.")
