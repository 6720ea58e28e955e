"""Models over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from app.http.paging import Page, Paging
from app.models import service
from app.models.schemas import ModelLineageView, ModelView, lineage_view
from app.storage.database import ReadSession

router = APIRouter(prefix="/models", tags=["models"])

ModelId = Annotated[str, Path(description="Id of the model, `model_…`.")]


@router.get("")
def list_models(
    session: ReadSession,
    paging: Paging,
    name: Annotated[str | None, Query(description="Return only models with exactly this name.")] = None,
) -> Page[ModelView]:
    """List models, newest first."""
    models, after = service.list_models(session, paging, name)
    return Page(items=[ModelView.model_validate(model) for model in models], next=after)


@router.get("/{model_id}")
def get_model(model_id: ModelId, session: ReadSession) -> ModelLineageView:
    """Return a model with its lineage: the run, the dataset and the model that it was produced from."""
    model = service.get_model(session, model_id)
    return lineage_view(model, *service.load_lineage(session, model))
