"""Storage over HTTP."""

from fastapi import APIRouter

from app.settings import get_settings
from app.storage import usage
from app.storage.database import ReadSession
from app.storage.schemas import StorageView

router = APIRouter(prefix="/storage", tags=["storage"])


@router.get("")
def get_storage(session: ReadSession) -> StorageView:
    """Return the use of disk space by kind, what can be reclaimed, and the last collection of garbage."""
    return usage.view_storage(session, get_settings())
