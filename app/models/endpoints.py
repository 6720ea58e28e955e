"""Models over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from app.http.paging import Page, Paging
from app.models import service
from app.models.schemas import ModelLineageView, ModelView
from app.storage.database import ReadSession, WriteSession

router = APIRouter(prefix="/models", tags=["models"])

ModelId = Annotated[str, Path(description="Id of the model, `model_…`.")]


@router.get("")
def list_models(
    session: ReadSession,
    paging: Paging,
    name: Annotated[str | None, Query(description="Return only models with exactly this name.")] = None,
    dataset_id: Annotated[
        str | None, Query(description="Return only models trained on the dataset with this id.")
    ] = None,
) -> Page[ModelView]:
    """List models, newest first."""
    models, after = service.list_models(session, paging, name, dataset_id)
    return Page(items=[ModelView.model_validate(model) for model in models], next=after)


@router.get("/{model_id}")
def get_model(model_id: ModelId, session: ReadSession) -> ModelLineageView:
    """Return a model with its lineage, and with what uses it.

    The lineage is the run, the dataset and the model that it was produced from.
    """
    return service.view_model(session, service.get_model(session, model_id))


@router.delete("/{model_id}", status_code=204)
def delete_model(model_id: ModelId, session: WriteSession) -> None:
    """Delete a model that no unfinished job, live deployment or other model uses.

    Finished jobs keep its id. The files disappear with the next collection. Deleting it again returns 404.
    """
    service.delete_model(session, model_id)
