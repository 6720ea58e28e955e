"""Response schemas of the model endpoints."""

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from app.jobs.schemas import JobName
from app.storage.opening import get_store
from app.tables import Dataset, Model, ModelKind, Run, RunStatus
from trainers.configs import Config, Queue
from trainers.configs.base import NonEmpty


class ModelView(BaseModel):
    """Weights that can be served."""

    model_config = ConfigDict(from_attributes=True)

    id: str = Field(description="Id of the model, `model_…`.")
    name: str = Field(description="Name of the stage that produced it.")
    kind: ModelKind = Field(description="Full weights (`base`), or an adapter on a base.")
    base: str = Field(description="Hub id or folder that training started from.")
    parent_id: str | None = Field(description="Id of the registry model that training started from.")
    dataset_id: str | None = Field(description="Id of the dataset that it was trained on.")
    run_id: str | None = Field(description="Id of the run that produced it.")
    sha256: str = Field(description="Hash of its manifest, which contains the hash of every file.")
    size_bytes: int = Field(description="Size of all its files.")
    template_sha256: str | None = Field(description="Hash of its chat template.")
    created_at: datetime = Field(description="When it was published.")
    path: str | None = Field(
        None,
        description="Folder of its files on the host of the API; null if the artifacts are in a remote "
        "store. GET /api/v1/models/{id}/download sends them.",
    )


class ModelImport(Config):
    """A model of a folder or of the hub to register. A worker fetches and verifies it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"source": "starter"},
                {"source": "org/adapter@9b2f0a7", "name": "translator", "base": "Qwen/Qwen2.5-0.5B-Instruct"},
            ]
        }
    )

    source: NonEmpty = Field(
        description="A hub id (`org/name@commit` with a revision), or a folder under an allowed root: a PEFT "
        "adapter, or whole weights."
    )
    base: NonEmpty | None = Field(
        None,
        description="Base of an adapter, in place of the one that its `adapter_config.json` names: a hub id, "
        "a folder or an id of the registry.",
    )
    name: JobName | None = Field(None, description="Name of the job; by default the source.")
    queue: Queue | None = Field(None, description="Hardware to run on; by default a CPU.")


class ModelForm(StrEnum):
    """The form in which the weights of a model are downloaded."""

    adapter = "adapter"
    merged = "merged"


class ModelFileView(BaseModel):
    """A file of a model."""

    path: str = Field(description="Name of the file in the model's folder.")
    size_bytes: int = Field(description="Size of the file.")
    sha256: str = Field(description="SHA-256 of the file, which is also its `ETag`.")


class ModelFilesView(BaseModel):
    """The files of a model."""

    items: list[ModelFileView] = Field(description="All files, by name.")


class LineageRunView(BaseModel):
    """The run that produced a model."""

    model_config = ConfigDict(from_attributes=True)

    id: str = Field(description="Id of the run.")
    job_id: str = Field(description="Id of its job.")
    name: str = Field(description="Name of the stage.")
    status: RunStatus = Field(description="State of the run.")


class LineageDatasetView(BaseModel):
    """The dataset that a model was trained on."""

    model_config = ConfigDict(from_attributes=True)

    id: str = Field(description="Id of the dataset.")
    name: str = Field(description="Name of the dataset.")
    sha256: str = Field(description="Hash of the file.")
    row_count: int = Field(description="Number of its rows.")
    deleted_at: datetime | None = Field(description="When its file was deleted.")


class ModelUsersView(BaseModel):
    """What uses a model and prevents its deletion, at most 100 of each kind."""

    jobs: list[str] = Field(description="Ids of unfinished jobs that use it.")
    deployments: list[str] = Field(description="Ids of live deployments of it, or of an adapter on it.")
    models: list[str] = Field(description="Ids of models that were trained from it, or are adapters on it.")

    def list_ids(self) -> list[str]:
        """Return the ids of all users."""
        return [*self.jobs, *self.deployments, *self.models]


class ParentModelView(ModelView):
    """The registry model that another one was trained from."""

    deleted_at: datetime | None = Field(description="When its files were deleted.")


class ModelLineageView(ModelView):
    """A model and its origin."""

    run: LineageRunView | None = Field(description="The run that produced it; null once its job was deleted.")
    dataset: LineageDatasetView | None = Field(description="The dataset that it was trained on.")
    parent: ParentModelView | None = Field(description="The registry model that training started from.")
    used_by: ModelUsersView = Field(description="What uses it and prevents its deletion.")


def model_view(model: Model) -> ModelView:
    """Build the view of a model."""
    path = get_store().local_path(model.artifact)
    return ModelView.model_validate(model).model_copy(update={"path": str(path) if path else None})


def lineage_view(
    model: Model, run: Run | None, dataset: Dataset | None, parent: Model | None, users: ModelUsersView
) -> ModelLineageView:
    """Build the view of a model with its lineage and its users."""
    return ModelLineageView(
        **model_view(model).model_dump(),
        run=LineageRunView.model_validate(run) if run else None,
        dataset=LineageDatasetView.model_validate(dataset) if dataset else None,
        parent=ParentModelView.model_validate(parent) if parent else None,
        used_by=users,
    )
