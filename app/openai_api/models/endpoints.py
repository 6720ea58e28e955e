"""Deletion of fine-tuned models; the gateway lists and returns models."""

from typing import Annotated, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel, Field

from app.fine_tuning import models
from app.http.auth import CallerDependency
from app.storage.database import WriteSession

router = APIRouter(prefix="/models", tags=["models"])

ModelName = Annotated[str, Path(max_length=512, description="Name of a fine-tuned model, `ft:…`.")]


class ModelDeleted(BaseModel):
    """The response to a deletion."""

    id: str = Field(description="Name of the model.")
    object: Literal["model"] = Field(description="Always `model`.")
    deleted: bool = Field(description="Always true.")


@router.delete("/{model:path}")
def delete_model(session: WriteSession, caller: CallerDependency, model: ModelName) -> ModelDeleted:
    """Delete a fine-tuned model that is not deployed, and that no unfinished job and no other model uses."""
    models.delete_model(session, model, caller.key_id)
    return ModelDeleted(id=model, object="model", deleted=True)
