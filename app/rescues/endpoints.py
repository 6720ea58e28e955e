"""Rescues over HTTP. They use the operator's key of OpenAI, so every endpoint requires the scope `admin`."""

from typing import Annotated

from fastapi import APIRouter, Body, Depends, Path

from app.http.auth import CallerDependency, require_admin
from app.http.edges.query import check_query
from app.http.paging import Page, Paging
from app.rescues import service
from app.rescues.account import list_account_models
from app.rescues.schemas import (
    CREATE_EXAMPLES,
    START_EXAMPLES,
    OpenaiModelList,
    RescueCreate,
    RescueStart,
    RescueView,
    openai_model_view,
)
from app.rescues.views import view_rescue
from app.settings import get_settings
from app.storage.database import ReadSession, WriteSession, read_session

router = APIRouter(
    prefix="/rescues", tags=["rescues"], dependencies=[Depends(require_admin), Depends(check_query)]
)

RescueIdPath = Annotated[str, Path(max_length=100, description="Id of the rescue, `rescue_…`.")]


@router.post("", status_code=201)
def create_rescue(
    caller: CallerDependency, body: Annotated[RescueCreate, Body(openapi_examples=CREATE_EXAMPLES)]
) -> RescueView:
    """Queue a run that fetches the files of a model at OpenAI; it asks no model, and costs nothing."""
    return _load_view(service.create_rescue(get_settings(), body, caller.key_id))


@router.get("")
def list_rescues(session: ReadSession, paging: Paging) -> Page[RescueView]:
    """List rescues, newest first."""
    rescues, after = service.list_rescues(session, paging)
    return Page(items=[view_rescue(session, get_settings(), rescue) for rescue in rescues], next=after)


@router.get("/models")
def list_openai_models() -> OpenaiModelList:
    """List the fine-tuned models at OpenAI with the days left, with the API's own key of OpenAI."""
    return OpenaiModelList(items=[openai_model_view(found) for found in list_account_models(get_settings())])


@router.get("/{rescue_id}")
def get_rescue(session: ReadSession, rescue_id: RescueIdPath) -> RescueView:
    """Return a rescue with the expected cost and, at the end, the comparison of both models."""
    return view_rescue(session, get_settings(), service.get_rescue(session, rescue_id))


@router.delete("/{rescue_id}", status_code=204)
def delete_rescue(session: WriteSession, rescue_id: RescueIdPath) -> None:
    """Delete a rescue whose jobs have ended; they, their datasets and the new model stay."""
    service.delete_rescue(session, rescue_id)


@router.post("/{rescue_id}/start")
def start_rescue(
    rescue_id: RescueIdPath,
    caller: CallerDependency,
    body: Annotated[RescueStart, Body(openapi_examples=START_EXAMPLES)],
) -> RescueView:
    """Train the base, record the responses of the old model, and compare both, in one job.

    A second request continues a recording that has failed, with another `max_cost`: what is recorded is kept.
    """
    service.start_rescue(get_settings(), rescue_id, body, caller.key_id)
    return _load_view(rescue_id)


def _load_view(rescue_id: str) -> RescueView:
    with read_session() as session:
        return view_rescue(session, get_settings(), service.get_rescue(session, rescue_id))
