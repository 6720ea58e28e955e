"""Models over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Query

from app.http.paging import Page, Paging
from app.models import service
from app.models.schemas import ModelLineageView, ModelView
from app.storage.database import ReadSession

router = APIRouter(prefix="/models", tags=["models"])


@router.get("")
def list_models(
    session: ReadSession, paging: Paging, name: Annotated[str | None, Query(description="Exact name.")] = None
) -> Page[ModelView]:
    """Models from new to old."""
    models, following = service.listed(session, paging, name)
    return Page(items=[ModelView.model_validate(model) for model in models], next=following)


@router.get("/{model_id}")
def get_model(model_id: str, session: ReadSession) -> ModelLineageView:
    """A model and its lineage: the run, the dataset and the model that it came from."""
    return service.show(session, model_id)
