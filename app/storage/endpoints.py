"""Storage over HTTP."""

from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Body, Request

from app.retention.report import COLLECTION_EXAMPLES, CollectionCreate, RequestedCollectionView
from app.retention.request import start_collection
from app.settings import get_settings
from app.storage import usage
from app.storage.database import ReadSession
from app.storage.schemas import StorageView

router = APIRouter(prefix="/storage", tags=["storage"])


@router.get("")
def get_storage(session: ReadSession) -> StorageView:
    """Return the use of disk space by kind, what can be reclaimed, and the last collection of garbage."""
    return usage.view_storage(session, get_settings())


@router.post("/collections", status_code=202)
def create_collection(
    request: Request,
    background: BackgroundTasks,
    body: Annotated[CollectionCreate, Body(openapi_examples=COLLECTION_EXAMPLES)],
) -> RequestedCollectionView:
    """Collect garbage now, or show what would be removed; `requested` of the storage has the result.

    It runs in the background, and applies the rules that every collection applies.
    """
    started, run = start_collection(
        get_settings(), dry_run=body.dry_run, is_stopping=request.app.state.stopping.is_set
    )
    background.add_task(run)
    return started
